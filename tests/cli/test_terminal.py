"""Tables and complaints, in a pipe and on a terminal."""

import io
import os
import re
import sys

from convsmith.cli.shell import progress, terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_piped_table_is_one_aligned_line_per_row(capsys):
    terminal.table(("name", "n", "x"), [("a", 1234, 0.123456), ("long name", 5, None)])
    assert capsys.readouterr().out.splitlines() == [
        "name           n       x",
        "a          1,234  0.1235",
        "long name      5       -",
    ]


def test_an_empty_table_is_its_head(capsys):
    terminal.table(("name", "n"), [])
    assert capsys.readouterr().out == "name  n\n"


def test_text_in_brackets_survives_on_a_terminal(monkeypatch):
    for name, speak in (
        ("stdout", lambda: terminal.table(("rule",), [('pip install "convsmith[demo]"',)])),
        ("stderr", lambda: terminal.complain("error", 'pip install "convsmith[demo]"')),
    ):
        stream = Terminal()
        monkeypatch.setattr(sys, name, stream)
        speak()
        monkeypatch.undo()
        assert '"convsmith[demo]"' in stream.getvalue()


def test_only_the_head_of_a_complaint_is_red(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", Terminal())
    terminal.complain("error", "must be text")
    assert re.fullmatch(r"\x1b\[[\d;]+merror: \x1b\[0mmust be text\n", sys.stderr.getvalue())


def test_only_the_first_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    terminal.say("x")
    terminal.table(("a",), [("b",)])
    terminal.complain("error", "x")
    heard = capsys.readouterr()
    assert heard.out + heard.err == ""


def test_work_goes_on_where_nobody_reads_any_more(monkeypatch):
    """Regression: ``train ... | head`` ended the run before its result and report, with exit code 0."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        for _ in range(2):
            terminal.say("x")
            terminal.table(("a",), [("b",)])
            terminal.complain("error", "x")
            progress.Lines("work", stream, iter((0.0, 5.0)).__next__)(1, 1)


def test_streams_take_every_text_and_may_be_closed(monkeypatch):
    """Regression: a name beyond the letters of the terminal, and ``>&-``, were bugs in convsmith."""
    heard = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(heard, encoding="ascii", errors="strict"))
    monkeypatch.setattr(sys, "stderr", None)
    terminal.open_streams()
    terminal.say("日本.png")
    terminal.complain("error", "x")
    assert heard.getvalue() == b"\\u65e5\\u672c.png\n"
    sys.stderr.close()
