"""The folder of one run: what is refused before work, and what every run writes first."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convsmith.cli.shell import environment, flags, lock, options, settings, terminal
from convsmith.cli.shell.settings import MARK
from convsmith.errors import InvalidArgument, MissingExtra, RunFailed
from convsmith.files import write_csv, write_json, write_text

ENVIRONMENT = "environment.json"
#: settings that may differ when a run goes on: they change no number that comes out
RESUME_FREE = frozenset(
    {"out", "data_root", "device", "log_every", "checkpoint_every", "keep_last", "num_workers", "trackers"}
)
#: folders that the command of this process began
_made: list[Path] = []


class Interrupted(KeyboardInterrupt):
    """The run was stopped and its state is saved; the message says how to go on."""

    def __init__(self, verb: str, folder: Path, done: str) -> None:
        go_on = shlex.join(["convsmith", verb, "--out", str(folder), "--resume"])
        super().__init__(f"{done}; the state is saved\n  go on with: {go_on}")


def check(verb: str, arguments: options.Computation) -> Path:
    """Return the folder the run will write, without touching it, or raise `InvalidArgument`."""
    if arguments.out is None:
        if terminal.processes() > 1:
            raise InvalidArgument("several processes need one named run folder", argument="--out", hint="add --out DIR")
        names = (Path("runs", f"{verb}-{number}") for number in itertools.count(1))
        folder = next(name for name in names if not name.exists())
        check_writable(folder.parent)
        return folder
    folder = Path(arguments.out)
    if not terminal.is_main_process():
        return folder
    if folder.exists() and not folder.is_dir():
        raise InvalidArgument("the run folder is a file", argument=f"--out {folder}", hint="name another place")
    lock.check(folder)
    if arguments.resume:
        _check_same_settings(verb, folder, arguments)
    elif folder.is_dir():
        _check_free(folder, arguments)
    check_writable(folder)
    return folder


def _check_free(folder: Path, arguments: options.Computation) -> None:
    # a run that was killed before it began leaves its lock and drafts
    if all(path.name == lock.NAME or path.suffix == ".draft" for path in folder.iterdir()):
        return
    is_run = (folder / MARK).is_file()
    if not arguments.overwrite:
        go_on = "--resume to go on, " if isinstance(arguments, options.Work) else ""
        hint = f"{go_on}--overwrite to replace it, or another --out" if is_run else "name another place"
        rule = "the run folder exists already" if is_run else "the folder is not empty and holds no run"
        raise InvalidArgument(rule, argument=f"--out {folder}", hint=hint)
    if not is_run:
        rule, argument = "only a run folder is ever overwritten", f"--overwrite --out {folder}"
        given = f"a folder without {MARK}"
        raise InvalidArgument(rule, argument=argument, given=given, hint="empty it yourself or name another place")
    read = (value for name, value in vars(arguments).items() if name not in ("out", "config"))
    for word in (word for value in read for word in flags.words_of(value)):
        place = Path(word.partition(":")[2] or word)
        if place.resolve().is_relative_to(folder.resolve()) and place.exists():
            rule, argument = "the folder holds what the command reads", f"--overwrite --out {folder}"
            raise InvalidArgument(rule, argument=argument, given=word, hint="another --out")


def _check_same_settings(verb: str, folder: Path, arguments: options.Computation) -> None:
    stored = settings.checked(verb, type(arguments), settings.text_of(folder / MARK), where=str(folder / MARK))
    now = options.resolved(verb, arguments)
    differing = []
    for name, then in stored.items():
        then = list(then) if isinstance(then, tuple) else then
        if name not in RESUME_FREE and now[name] != then:
            differing.append(f"{name.replace('_', '-')}: {then} then, {now[name]} now")
    if differing:
        rule = "a run goes on only with the settings it began with"
        hint = "leave these flags out, or start a new run (train --model RUN starts from its weights)"
        raise InvalidArgument(rule, argument=f"--resume --out {folder}", given="; ".join(differing), hint=hint)


def discard(folder: Path, arguments: options.Computation) -> None:
    """Remove the folder of a run that was refused before it began; one that goes on is left alone."""
    if terminal.is_main_process() and not arguments.resume:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def closing(verb: str, arguments: options.Listing) -> Iterator[None]:
    """Let go of run folders when a command ends; one that failed before it wrote any result leaves none.

    An interruption between two savings says how to go on too, if there is a folder to go on in.
    """
    _made.clear()
    try:
        yield
    except Interrupted:  # its message says how to go on in this folder
        raise
    except BaseException as error:
        for folder in _made:
            if {p.name for p in folder.rglob("*") if p.is_file()} <= {MARK, ENVIRONMENT, lock.NAME}:
                shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt) and isinstance(arguments, options.Work):
            begun = [Path(str(arguments.out))] if arguments.resume else [path for path in _made if path.is_dir()]
            if begun:
                raise Interrupted(verb, begun[0], "stopped") from None
        raise
    finally:
        lock.release()


@contextmanager
def beginning(folder: Path, arguments: options.Computation) -> Iterator[None]:
    """Run a training: bad input met before its first logged number leaves no folder, later it is a failed run."""
    log = folder / "history.jsonl"
    before = log.stat().st_size if log.is_file() else 0
    try:
        yield
    except (InvalidArgument, MissingExtra) as error:
        if before == (log.stat().st_size if log.is_file() else 0):
            discard(folder, arguments)
            raise
        hint = error.hint or "the checkpoints from before are kept"
        raise RunFailed(error.rule, argument=error.argument, given=error.given, hint=hint) from error


def check_writable(folder: Path, argument: str | None = None) -> None:
    """Refuse a folder that cannot be made or written, as ``argument``, left out as the run folder."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "is not writable" if nearest.is_dir() else "is a file"
        rule, given = f"the {'run ' if argument is None else ''}folder cannot be written", f"{nearest} {reason}"
        raise InvalidArgument(rule, argument=argument or f"--out {folder}", given=given, hint="name another place")


def table_file(arguments: options.Computation) -> Path | None:
    """Return the CSV file that ``--out`` names, None without one, or raise `InvalidArgument`."""
    if arguments.out is None:
        return None
    out = Path(arguments.out)
    if out.suffix.lower() != ".csv":
        raise InvalidArgument("the table is a CSV file", argument="--out", given=arguments.out, hint="--out FILE.csv")
    return new_file(out, "--out", "--overwrite to replace it, or another name", arguments.overwrite)


def new_file(file: Path, flag: str, hint: str, overwrite: bool = False) -> Path:
    """Return the file that a flag names, or raise `InvalidArgument`: it is there already, its folder cannot be used."""
    argument = f"{flag} {file}"
    if file.is_dir():
        raise InvalidArgument("a file is written, and this is a folder", argument=argument, hint="name a file in it")
    if file.exists() and not overwrite:
        raise InvalidArgument("the file exists already", argument=argument, hint=hint)
    if not file.parent.is_dir():
        raise InvalidArgument("there is no such folder", argument=argument, given=str(file.parent))
    check_writable(file.parent, argument)
    return file


def write_table(out: Path | None, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, shown: int) -> str | None:
    """Write all ``rows`` to the `table_file`, say where, and how many beyond those ``shown`` there are; return it."""
    if len(rows) > shown:
        terminal.say(f"... and {len(rows) - shown} more" + ("" if out else "; --out FILE.csv writes all"))
    if out is None:
        return None
    terminal.say(f"table   {write_csv(out, [columns, *rows])}")
    return str(out)


def open_run(verb: str, arguments: options.Computation) -> Path:
    """Check (see `check`), make the folder, write ``config.yaml`` and ``environment.json`` and return its path."""
    import yaml

    folder = check(verb, arguments)
    if not terminal.is_main_process():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.hold(folder)
        if arguments.overwrite and not arguments.resume and (folder / MARK).is_file():
            _clear(folder)
        for draft in folder.rglob(".*.draft"):  # of a run that was killed while it wrote
            draft.unlink()
    except OSError as error:
        rule = "the run folder cannot be made"
        raise InvalidArgument(rule, argument=str(folder), given=error.strerror, hint="another --out") from None
    if not arguments.resume:
        _made.append(folder)
        values = options.resolved(verb, arguments) | {"out": str(folder)}
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_text(folder / MARK, f"# {environment.command()}\n{text}")
    known = folder / ENVIRONMENT
    if arguments.resume and known.is_file():
        known = folder / f"environment-resumed-{len(list(folder.glob('environment-resumed-*.json'))) + 1}.json"
    write_json(known, environment.record())
    return folder


def conclude(folder: Path, summary: dict[str, Any], **made: object) -> dict[str, Any]:
    """Write ``result.json`` and the report, say where they and what else was ``made`` are, and return the summary."""
    from convsmith.report import build_report

    write_json(folder / "result.json", summary)
    places = {"run": str(folder), **{name: str(place) for name, place in made.items()}}
    places["report"] = str(build_report([folder]))
    width = max(map(len, places)) + 2
    terminal.say(*(f"{name:<{width}}{place}" for name, place in places.items()))
    return {**places, **summary}


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, its settings last: a kill in between leaves a folder that is still a run."""
    for path in sorted(folder.iterdir(), key=lambda p: p.name == MARK):
        if path.name != lock.NAME:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
