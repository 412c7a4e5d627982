"""``convsmith structures``: its tables, its machine-readable line and its complaints."""

import json

import pytest

from convsmith.cli import main


def said(capsys, *words):
    assert main.main(["structures", *words, "--json"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    return json.loads(last), "\n".join(text)


def test_structures_of_a_width(capsys):
    summary, text = said(capsys, "--channels", "64", "--size", "7", "--limit", "3")
    rows = summary["structures"]
    assert rows[0]["partitions"] == [1, 4, 4, 4]
    assert rows[0]["params"] == 64 * 21
    assert rows[0]["macs"] == 49 * rows[0]["params"]
    assert "1 x 4 x 4 x 4" in text
    assert "not shown" in text


def test_a_budget_cuts_the_list(capsys):
    summary, _ = said(capsys, "--channels", "64", "--budget", "2000")
    assert summary["structures"]
    assert all(row["params"] <= 2000 for row in summary["structures"])


def test_the_widest_pairs_of_a_budget(capsys):
    summary, text = said(capsys, "--budget", "1296")
    assert summary["structures"][0]["channels"] == 36
    assert summary["bound"] == pytest.approx(36)
    assert "L = 9 M" in text


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "width or a budget"),
        (["--channels", "64", "--budget", "10"], "that light"),
        (["--channels", "0"], "at least 1"),
        (["--channels", "8", "--kernel", "0"], "--kernel"),
        (["--channels", "8", "--kind", "flops"], "flops"),
    ],
)
def test_bad_input_ends_in_2(capsys, words, complaint):
    assert main.main(["structures", *words]) == 2
    assert complaint in capsys.readouterr().err
