"""The demonstration: parts are found by file, a missing extra is named and costs one part, digits are learned."""

import json
from html.parser import HTMLParser

import pytest

from convsmith.cli import main
from convsmith.cli.verbs import demo
from convsmith.errors import InvalidArgument, MissingExtra, RunFailed
from convsmith.report import Section


def test_the_control_network_reads_held_out_digits(tmp_path, capsys):
    run = tmp_path / "demo"
    assert main.main(["demo", "--only", "training", "--out", str(run), "--json"]) == 0
    heard = capsys.readouterr().out
    said = json.loads(heard.splitlines()[-1])
    assert said["headline"]["test accuracy, %"] >= 97.0
    assert said["headline"]["test images"] >= 300
    assert said["seconds"]["training"] < 60
    assert f"report  {run / 'report.html'}" in heard
    assert (run / "model.safetensors").is_file()
    seen = Links()
    seen.feed((run / "report.html").read_text())
    assert seen.pictures > 0
    assert seen.outside == []


class Links(HTMLParser):
    """Count pictures and collect everything that would be fetched from outside the page."""

    def __init__(self):
        super().__init__()
        self.pictures, self.outside = 0, []

    def handle_starttag(self, tag, attrs):
        self.pictures += tag in ("img", "svg")
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("data:image/", "#")):
                self.outside.append((tag, value))


def test_every_part_has_a_title_and_training_comes_first():
    found = demo.parts()
    assert next(iter(found)) == "training"
    for title, work in found.values():
        assert title
        assert callable(work)
    assert list(demo.parts(("training",))) == ["training"]
    with pytest.raises(InvalidArgument, match="'training'"):
        demo.parts(("trianing",))


def parts_that(*endings):
    def work(number, ending):
        def run(context):
            Section(f"part {number}", text=["done"]).save(context.folder, f"{10 * number}-part")
            if ending is not None:
                raise ending

        return run

    return lambda only=(): {f"p{n}": (f"Part {n}", work(n, e)) for n, e in enumerate(endings, 1)}


def test_a_missing_extra_leaves_out_its_part_only_and_says_so(tmp_path, monkeypatch, capsys):
    absent = MissingExtra("the package 'mlxtend' is not installed", hint='pip install "convsmith[demo]"')
    monkeypatch.setattr(demo, "parts", parts_that(None, absent, None))
    assert main.main(["demo", "--out", str(tmp_path / "run")]) == 0
    heard = capsys.readouterr()
    assert 'pip install "convsmith[demo]"' in heard.err
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Part 2: left out" in page
    assert "part 3" in page


def test_a_part_that_fails_fails_the_demonstration(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "parts", parts_that(None, RunFailed("it broke")))
    assert main.main(["demo", "--out", str(tmp_path / "run")]) == 1
    assert "it broke" in capsys.readouterr().err


@pytest.mark.slow
def test_all_parts_together_stay_under_six_minutes(tmp_path, capsys):
    assert main.main(["demo", "--out", str(tmp_path / "run"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["left_out"] == []
    assert sum(said["seconds"].values()) < 360
