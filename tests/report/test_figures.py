import base64
import io
import re
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from convsmith.report import figures
from convsmith.report.figures import Series

ALL = {
    "lines": lambda: figures.lines(
        {"a": Series([1, 2], [1, 2], [0, 1], [2, 3]), "b": Series([1, 2], [2, 1])}, xlabel="x", ylabel="y"
    ),
    "bars": lambda: figures.bars({"one": (1.0, 0.5, 1.5), "two": 2.0}, xlabel="ms"),
    "scatter": lambda: figures.scatter({"p": (1, 2), "q": (2, 3)}, xlabel="x", ylabel="y", front=["p", "q"]),
    "groups": lambda: figures.groups({"p": np.zeros((3, 2)), "q": np.ones((2, 2))}, xlabel="x", ylabel="y"),
    "heatmap": lambda: figures.heatmap(np.eye(2), rows=["a", "b"], columns=["a", "b"], xlabel="x", ylabel="y"),
    "strips": lambda: figures.strips({"conv1": [0, 1, 2]}, xlabel="channel"),
}


@pytest.mark.parametrize("kind", ALL)
def test_a_figure_is_one_svg_element_that_needs_nothing_from_outside(kind):
    svg = ALL[kind]()
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "currentColor" in svg
    assert not re.search(r'(href|src)="http', svg.replace('xlink"', ""))


@pytest.mark.parametrize("kind", ALL)
def test_two_figures_on_one_page_share_no_identifier(kind):
    others = [ALL[k]() for k in ALL if k != kind]
    mine = set(re.findall(r'\bid="([^"]+)"', ALL[kind]()))
    assert mine
    for other in others:
        assert not mine & set(re.findall(r'\bid="([^"]+)"', other))


def test_the_same_numbers_give_the_same_bytes():
    assert ALL["lines"]() == ALL["lines"]()


def test_text_stays_text():
    assert "accuracy, %" in figures.bars({"one": 1.0}, xlabel="accuracy, %")


def test_a_name_that_matplotlib_has_no_font_for_is_no_warning():
    """Regression: classes named in Chinese filled stderr with warnings, though the page shows their text."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "日本" in figures.bars({"日本": 2.0}, xlabel="ms")


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5), (3, 4, 5)])
def test_png_round_trip(shape):
    pixels = np.random.default_rng(0).random(shape)
    image = Image.open(io.BytesIO(base64.b64decode(figures.png(pixels))))
    assert image.size == (5, 4)
    back = np.asarray(image) / 255
    expected = pixels.reshape(4, 5) if shape[0] != 3 else pixels.transpose(1, 2, 0)
    assert np.abs(back - expected).max() <= 0.5 / 255 + 1e-9


def test_names_with_dollars_are_no_formulas():
    names = ["$x_$", "US$ and A$"]
    made = figures.heatmap(np.eye(2), rows=names, columns=names, xlabel="x", ylabel="y")
    assert made.count("US$ and A$") >= 2
    assert "$x_$" in figures.lines({name: Series([1, 2], [1, 2]) for name in names}, xlabel="x", ylabel="y")
    assert "$x_$" in figures.bars(dict.fromkeys(names, 1.0), xlabel="x")
