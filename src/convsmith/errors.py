"""The errors convsmith raises on purpose: the argument, what was given, which rule broke, a hint."""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class ConvsmithError(Exception):
    """Base of every error raised on purpose.

    Args:
        rule: the rule that broke, one sentence.
        argument: what was asked for (a parameter, a flag, an operation).
        given: what was given instead.
        hint: what to do about it.
    """

    exit_code = 2

    def __init__(self, rule: str, *, argument: object = None, given: object = None, hint: str | None = None) -> None:
        self.rule, self.argument, self.given, self.hint = rule, argument, given, hint
        told = {"argument:": argument, "given:": given, "hint:": hint}
        lines = [f"  {word:9} {what}" for word, what in told.items() if what is not None]
        super().__init__("\n".join([rule, *lines]))


class InvalidArgument(ConvsmithError, ValueError):
    """A bad value, shape, name or file, found before any work."""


class MissingExtra(ConvsmithError, ImportError):
    """An optional dependency is not installed."""


class RunFailed(ConvsmithError, RuntimeError):
    """Work that had begun could not go on (a loss that is not finite, a lost file); nothing saved is lost."""

    exit_code = 1


@contextmanager
def refusing(rule: str, *errors: type[Exception], argument: object = None, hint: str | None = None) -> Iterator[None]:
    """Make of ``errors`` one `InvalidArgument` that gives their words; those raised on purpose pass as they are."""
    try:
        yield
    except ConvsmithError:
        raise
    except errors as error:
        given = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise InvalidArgument(rule, argument=argument, given=given, hint=hint) from error


def close_matches(name: str, known: Iterable[str]) -> str:
    """One sentence for an unknown name: the close ones if there are any, else all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    shown = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
    return f"known: {shown}"


def differing_tensors(model: Mapping[str, Any], file: Mapping[str, Any]) -> str | None:
    """One sentence on the first tensors that a model's and a file's state do not share; None if they agree."""
    own, given = ({name: tuple(tensor.shape) for name, tensor in state.items()} for state in (model, file))
    found = [f"{k} {own[k]} is not in the file" for k in own if k not in given]
    found += [f"{k} {given[k]} is not in the model" for k in given if k not in own]
    both = [k for k in own if k in given and own[k] != given[k]]
    found += [f"{k} is {given[k]} in the file and {own[k]} in the model" for k in both]
    if not found:
        return None
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def require(module: str, extra: str) -> ModuleType:
    """Import an optional ``module``, or raise `MissingExtra` naming the pip line of convsmith's ``extra``."""
    log = logging.getLogger("torch.utils._pytree")
    level = log.level
    log.setLevel(logging.ERROR)  # torch remarks on how torchao registers an enumeration, which no user can mend
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise
        rule, hint = f"the package {module.split('.')[0]!r} is not installed", f'pip install "convsmith[{extra}]"'
        raise MissingExtra(rule, argument=f"something that needs the extra {extra!r}", hint=hint) from error
    finally:
        log.setLevel(level)
