import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from convsmith.errors import InvalidArgument
from convsmith.report import Figure, InlineImage, Section, Table, build_report
from convsmith.report.build import numeric, shown
from convsmith.report.figures import Series, lines, photo, png


def make_run(folder, name, lr, losses):
    run = folder / name
    run.mkdir()
    (run / "config.yaml").write_text(f"model: cs_resnet20\nlr: {lr}\n")
    (run / "environment.json").write_text(json.dumps({"versions": {"torch": "2"}, "machine": "m"}))
    rows = [json.dumps({"kind": "train", "step": i, "loss": loss}) for i, loss in enumerate(losses)]
    (run / "history.jsonl").write_text("\n".join([*rows, '{"step": 9, "lo']))
    result = {"title": f"Training {name}", "lead": ["One line."], "headline": {"top-1, %": losses[-1], "images": 12345}}
    (run / "result.json").write_text(json.dumps(result))
    figure = Figure(lines({"a": Series([1, 2], [1, 2])}, xlabel="x", ylabel="y"), "A caption.", "a line going up")
    picture = InlineImage(png([[0.0, 1.0]]), "a < b", "two pixels")
    table = Table(["name", "value"], [["x & y", 0.123456], [None, 1]], "Numbers.")
    Section("Findings <b>", ["Text."], [table], [figure], [picture], ["Mind this."]).save(run, "10-findings")
    return run


class Outline(HTMLParser):
    def __init__(self):
        super().__init__()
        self.headings, self.links, self.anchors, self.sources, self._open = [], [], set(), [], None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self._open = tag if tag in ("h1", "h2") else self._open
        if "id" in attrs:
            assert attrs["id"] not in self.anchors, f"id {attrs['id']} twice"
            self.anchors.add(attrs["id"])
        for key in ("href", "src", "xlink:href"):
            if key in attrs:
                self.sources.append(attrs[key])

    def handle_data(self, data):
        if self._open:
            self.headings.append(data)
            self._open = None


def test_one_run_is_one_page_that_needs_nothing_else(tmp_path):
    run = make_run(tmp_path, "one", 0.1, [2.0, 1.0])
    path = build_report([run])
    assert path == run / "report.html"
    text = path.read_text()
    page = Outline()
    page.feed(text)
    assert page.headings == ["Training one", "Findings <b>", "Learning curves", "Configuration", "Environment"]
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in page.sources)
    assert all(source[1:] in page.anchors for source in page.sources if source.startswith("#"))
    assert "x &amp; y" in text
    assert "0.1235" in text
    assert "12,345" in text
    assert "a &lt; b" in text
    assert "Mind this." in text
    assert not re.search(r"@import|<script|<link", text)


def test_several_runs_stand_side_by_side(tmp_path):
    runs = [make_run(tmp_path, "one", 0.1, [2.0, 1.0]), make_run(tmp_path, "two", 0.2, [2.0, 0.5])]
    text = build_report(runs, tmp_path / "both.html").read_text()
    page = Outline()
    page.feed(text)
    assert page.headings[:4] == ["2 runs side by side", "Numbers", "Learning curves", "Settings that differ"]
    assert "one: training loss" in text
    assert "two: training loss" in text
    assert page.headings.count("one: Findings <b>") == 1


@pytest.mark.parametrize("make", [lambda p: p / "missing", lambda p: p])
def test_what_is_no_run_folder_is_refused(tmp_path, make):
    with pytest.raises(InvalidArgument):
        build_report([make(tmp_path)])


def test_no_runs_and_several_without_a_file_are_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="at least one"):
        build_report([])
    run = make_run(tmp_path, "one", 0.1, [1.0, 2.0])
    with pytest.raises(InvalidArgument, match="--out"):
        build_report([run, run])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (3, "3"),
        (269722, "269,722"),
        (0.0, "0"),
        (97.25, "97.25"),
        (1e-5, "1.00e-05"),
        (123456.7, "123,457"),
        (float("nan"), "nan"),
        ("text", "text"),
    ],
)
def test_cells_are_rounded_for_reading(value, text):
    assert shown(value) == text


def test_the_style_of_the_page_is_css_and_not_escaped_text(tmp_path):
    text = build_report([make_run(tmp_path, "one", 0.1, [2.0, 1.0])]).read_text()
    style = text[text.index("<style>") : text.index("</style>")]
    assert 'system-ui, -apple-system, "Segoe UI"' in style
    assert "&" not in style


@pytest.mark.parametrize(
    ("cells", "right"),
    [
        ([1, 2.5, None], True),
        (["95.6 % (85 to 99)", "100 %"], True),
        (["+15.3 points (+8.7 to +22.7)"], True),
        (["0.92 (0.91 to 0.93)", None], True),
        ([1, "int8"], False),
        (["3x3"], False),
        ([True], False),
        ([None], False),
    ],
)
def test_columns_of_numbers_stand_to_the_right(cells, right):
    assert numeric(Table(["x"], [[cell] for cell in cells]), 0) is right


def test_sixty_photographs_make_at_most_three_megabytes(tmp_path):
    run = make_run(tmp_path, "one", 0.1, [2.0, 1.0])
    rough = np.random.default_rng(0).random((60, 3, 24, 24))
    pictures = [InlineImage(photo(np.kron(one, np.ones((1, 20, 20)))), "", "a photograph", 200) for one in rough]
    Section("Pictures", images=pictures).save(run, "20-pictures")
    assert build_report([run]).stat().st_size < 3e6


def test_learning_curves_are_named_in_words():
    from convsmith.report.history import curves

    rows = [{"kind": "evaluation", "step": step, "ece": 0.1} for step in (2, 4)]
    (section,) = curves({"": rows})
    assert section.figures[0].caption == "Validation calibration error (ECE), by update."


def test_runs_of_one_name_and_lists_of_settings_are_told_apart(tmp_path):
    """Regression: of a/run and b/run one took the place of the other, and lists counted as equal."""
    runs = []
    for place, share in (("a", 0.5), ("b", 0.25)):
        (tmp_path / place).mkdir()
        runs.append(make_run(tmp_path / place, "run", 0.1, [2.0, 1.0]))
        config = f"# convsmith train --data hf:{place}\nmodel: x\nmilestones:\n- {share}\n"
        (runs[-1] / "config.yaml").write_text(config)
    text = build_report(runs, tmp_path / "both.html").read_text()
    for run in runs:
        assert f"{run}: training loss" in text
    table = text.split("Settings that differ</h2>")[1].split("</table>")[0]
    assert all(word in table for word in ("milestones", "0.5", "0.25"))
    assert "convsmith train" not in table
