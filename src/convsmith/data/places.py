"""Where data lies on disk, and the one way in which it is downloaded."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from convsmith.errors import InvalidArgument


def data_home() -> Path:
    """Return the folder in the environment variable CONVSMITH_DATA, else ``~/.cache/convsmith/data``."""
    return Path(os.environ.get("CONVSMITH_DATA") or "~/.cache/convsmith/data").expanduser()


def existing(path: str | Path, what: str, *, folder: bool | None = None) -> Path:
    """Return ``path`` with ``~`` resolved, or raise `InvalidArgument` if it is not there or not of the right kind."""
    found = Path(path).expanduser()
    if not found.exists():
        parent = found.parent
        while not parent.exists():
            parent = parent.parent
        raise InvalidArgument("the path does not exist", argument=what, given=str(found), hint=f"{parent} exists")
    if folder is not None and found.is_dir() != folder:
        raise InvalidArgument(f"this must be a {'folder' if folder else 'file'}", argument=what, given=str(found))
    return found


def downloaded(name: str, home: Path, spec: str, **arguments: Any) -> Any:
    """Return ``torchvision.datasets.NAME``, from files under ``home`` or else downloaded there, without printing."""
    import torchvision

    kind = getattr(torchvision.datasets, name)
    with contextlib.suppress(RuntimeError):
        return kind(str(home), download=False, **arguments)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return kind(str(home), download=True, **arguments)
    except (OSError, RuntimeError) as error:
        raise InvalidArgument(
            "the data set is not on this machine and cannot be downloaded",
            argument=spec,
            given=f"{type(error).__name__}: {error}",
            hint=f"connect to the network, or put its files under {home} (root= or CONVSMITH_DATA name another folder)",
        ) from error
