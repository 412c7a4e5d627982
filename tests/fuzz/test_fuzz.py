"""500 fuzzed cases: nothing may end otherwise than in a right answer or a refusal by name."""

from pathlib import Path

import pytest

from tests.fuzz import files, lines
from tests.fuzz.__main__ import fuzzed_calls
from tests.fuzz.outcomes import Outcome, limited, outcome


def said(found: list[Outcome]) -> str:
    return "\n".join(f"{o.kind}: {o.case[:300]}\n    {o.detail[:400]}" for o in found if not o.allowed)


def test_calls():
    found = fuzzed_calls(400)
    assert len(found) >= 400
    assert not said(found), said(found)
    assert sum(o.kind == "answered" for o in found) > 60


def test_damaged_files(tmp_path):
    found = list(files.run(tmp_path, 60))
    assert not said(found), said(found)
    assert sum(o.kind == "refused" for o in found) > 20


def test_command_lines(tmp_path):
    found = list(lines.run(Path(tmp_path), 40))
    assert not said(found), said(found)


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (lambda: 1, "answered"),
        (lambda: 2, "wrong"),
        (lambda: int("x"), "broken"),
        (lambda: {}["key"], "broken"),
    ],
)
def test_the_judge_can_condemn(work, kind):
    judged = outcome("case", work, ("argument",), lambda answer: None if answer == 1 else "not one")
    assert judged.kind == kind


def test_the_judge_sees_a_hang():
    def hang():
        with limited(0.05):
            while True:
                pass

    judged = outcome("case", hang, ("argument",), lambda answer: None)
    assert judged.kind == "broken"
    assert "still at it" in judged.detail
