"""Files that a kill or a full disk cannot spoil, and JSON that is checked at the door."""

from __future__ import annotations

import contextlib
import csv
import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convsmith.errors import InvalidArgument, RunFailed

_WORDS = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number"}


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give the path of a draft beside ``path``; when the block ends it is forced to disk and becomes ``path``.

    The mode is the umask's; folders that lack are made. When the block raises, the draft is removed and what was at
    ``path`` stays; drafts of ``path`` whose process was killed are removed first.

    Raises:
        RunFailed: the system refuses to write (a full disk, a read-only folder).
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.draft"):
            if not _runs(left.name.split(".")[-2]):
                left.unlink(missing_ok=True)
        draft.touch()
        mode = draft.stat().st_mode
        yield draft
        draft.chmod(mode)  # safetensors puts a private file of its own in the draft's place
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(path)
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        rule = "the file could not be written; what was there before is kept"
        given, hint = getattr(error, "strerror", None) or str(error), "make room or permit writing, then run it again"
        raise RunFailed(rule, argument=str(path), given=given, hint=hint) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _runs(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except PermissionError:  # someone else's
        return True
    return True


def write_text(path: Path | str, text: str) -> Path:
    """Write ``text`` as UTF-8, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return Path(path)


def whole_lines(path: Path | str) -> list[str]:
    """Return the lines of a log that is appended to; one that a kill cut off is taken out of the file first."""
    path = Path(path)
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    return whole.splitlines()


def write_csv(path: Path | str, rows: Iterable[Iterable[Any]]) -> Path:
    """Write a CSV file, whole or not at all; text that a spreadsheet would run as a formula gets an apostrophe."""
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([_plain(cell) for cell in row] for row in rows)
    return Path(path)


def _plain(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def write_json(path: Path | str, value: Any) -> Path:
    """Write strict JSON (no NaN), whole or not at all."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(
    path: Path | str, kind: str, fields: Mapping[str, type | tuple[type, ...]] | None = None
) -> dict[str, Any]:
    """Read a JSON object that somebody may have damaged.

    Args:
        path: the file.
        kind: what it is, for messages: ``"a report's section"``.
        fields: keys it must have, each with the type (or types) of its value.

    Raises:
        InvalidArgument: it cannot be read, is no JSON object, or lacks a field or has one of another type.
    """
    path = Path(path)

    def refuse(rule: str, given: object = None) -> InvalidArgument:
        return InvalidArgument(rule, argument=str(path), given=given, hint="write it anew, or restore it from a copy")

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise refuse(f"{kind} cannot be read", error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise refuse(f"{kind} is damaged: it is no JSON", str(error)[:100]) from None
    if not isinstance(value, dict):
        raise refuse(f"{kind} is damaged: it is no JSON object", type(value).__name__)
    for name, types in (fields or {}).items():
        wanted = types if isinstance(types, tuple) else (types,)
        if name not in value:
            raise refuse(f"{kind} is damaged: it lacks {name!r}")
        if not isinstance(value[name], wanted) or (isinstance(value[name], bool) and bool not in wanted):
            words = " or ".join(_WORDS.get(t, t.__name__) for t in wanted)
            raise refuse(f"{kind} is damaged: {name!r} must be {words}", repr(value[name])[:100])
    return value
