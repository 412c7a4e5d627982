"""Progress without a terminal: calm lines; with one: a bar."""

import io

from convsmith.cli.shell import progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def lines(events):
    """Feed (time, done, total) and return what was printed."""
    clock, stream = Clock(), io.StringIO()
    callback = progress.Lines("train", stream, clock)
    for now, done, total in events:
        clock.now = now
        callback(done, total, "loss 1")
    return stream.getvalue().splitlines()


def test_never_two_lines_within_a_second_but_always_the_last():
    printed = lines([(k / 1000, k, 1000) for k in range(1, 1001)])
    assert printed == ["train: 1000/1000 loss 1 [1 s]"]


def test_a_line_per_tenth_when_work_is_brisk():
    assert len(lines([(k * 0.5, k, 100) for k in range(1, 101)])) == 10


def test_a_line_per_ten_seconds_when_work_is_slow():
    assert len(lines([(k, k, 100000) for k in range(1, 101)])) == 10


def test_unknown_totals_are_counted():
    assert lines([(11, 5, 0)]) == ["train: 5 loss 1 [11 s]"]


def test_a_pipe_gets_lines_and_a_terminal_gets_a_bar():
    stream = io.StringIO()
    with progress.progress("work", stream) as callback:
        callback.began -= 5
        callback(1, 1, "")
    assert stream.getvalue() == "work: 1/1 [5 s]\n"

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with progress.progress("work", stream) as callback:
        callback(1, 2, "note")
    assert "work:" not in stream.getvalue()


def test_a_line_says_how_long_it_will_take():
    assert lines([(20, 1, 10)]) == ["train: 1/10 loss 1 [20 s, about 3.0 min left]"]
    assert lines([(3600, 1, 10)]) == ["train: 1/10 loss 1 [3600 s, about 9.0 h left]"]
    assert lines([(20, 9, 10)]) == ["train: 9/10 loss 1 [20 s, about 2 s left]"]


def test_a_resumed_run_is_timed_by_what_it_does_itself():
    assert lines([(0, 500, 1000), (20, 502, 1000)]) == ["train: 502/1000 loss 1 [20 s, about 83.0 min left]"]


def test_work_of_less_than_a_second_says_nothing():
    assert lines([(0.5, 1, 2), (0.9, 2, 2)]) == []
