"""One writer a run folder: an advisory lock that ends with its process, however that ends."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import IO

from convsmith.cli.shell import environment
from convsmith.errors import InvalidArgument

try:
    import fcntl
except ImportError:  # Windows has no flock: there two writers are not kept apart
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
_held: dict[Path, IO[str]] = {}


def check(folder: Path) -> None:
    """Refuse a folder that another process is writing."""
    if fcntl is None or folder.resolve() in _held or not (folder / NAME).is_file():
        return
    try:
        with (folder / NAME).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(folder) from None
    except OSError:  # a file system without locks, or a folder of another user: its own check follows
        return


def hold(folder: Path) -> None:
    """Take the lock of a folder until `release`; the file says who holds it."""
    if fcntl is None or folder.resolve() in _held:
        return
    file = (folder / NAME).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise _refusal(folder) from None
    except OSError:
        file.close()
        return
    file.truncate(0)
    file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "command": environment.command()}))
    file.flush()
    _held[folder.resolve()] = file


def release() -> None:
    """Let go of every lock of this process and remove the files."""
    for folder, file in list(_held.items()):
        (folder / NAME).unlink(missing_ok=True)
        file.close()
        del _held[folder]


def _refusal(folder: Path) -> InvalidArgument:
    try:
        owner = json.loads((folder / NAME).read_text())
        given = f"process {owner['process']} on {owner['host']}: {owner['command']}"
    except (OSError, ValueError, KeyError, TypeError):
        given = "a process that has not said its name"
    rule, hint = "another process is writing this run folder", "wait until it ends or stop it, or name another --out"
    return InvalidArgument(rule, argument=f"--out {folder}", given=given, hint=hint)
