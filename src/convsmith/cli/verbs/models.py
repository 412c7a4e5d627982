"""``convsmith models``: list networks by name."""

from __future__ import annotations

import contextlib
import fnmatch
from dataclasses import dataclass
from typing import Any

from convsmith.cli.shell import terminal
from convsmith.cli.shell.options import Listing, option
from convsmith.errors import InvalidArgument, close_matches

EXAMPLES = ("models", "models 'resnet*'", "models '*_isqrt' --parameters", "models 'vit_tiny*' --pretrained --json")


@dataclass(frozen=True, kw_only=True)
class Arguments(Listing):
    """List networks by name: convsmith's own, or with a pattern those of timm too."""

    pattern: str | None = option(None, "shell pattern of names, like 'resnet*'", metavar="PATTERN", positional=True)
    pretrained: bool = option(False, "only those with published weights")
    parameters: bool = option(False, "build each (without memory for weights), count parameters and MACs")


def run(arguments: Arguments) -> dict[str, Any]:
    """Print one line per network."""
    import timm

    names = own()
    if arguments.pattern is not None:
        pattern = arguments.pattern if any(mark in arguments.pattern for mark in "*?[") else f"*{arguments.pattern}*"
        everything = timm.list_models()
        names = fnmatch.filter(everything, pattern)
        if not names:
            hint = close_matches(arguments.pattern.strip("*?"), everything)
            hint = hint if hint.startswith("did you") else "a wider pattern; '*' lists every network"
            rule = "no network's name matches"
            raise InvalidArgument(rule, argument="models", given=repr(arguments.pattern), hint=hint)
    if arguments.pretrained:
        names = [name for name in names if timm.is_model_pretrained(name)]
    rows = [_row(name, arguments.parameters) for name in names]
    columns = ("model", "input", "weights", *(("parameters", "MACs") if arguments.parameters else ()))
    terminal.table(columns, rows)
    if arguments.pattern is None:
        terminal.say("", f"{len(names)} networks of convsmith; with a pattern ('*', 'resnet*') also timm's.")
    return {"models": [dict(zip(columns, row, strict=True)) for row in rows]}


def own() -> list[str]:
    """Return the names that convsmith itself registers with timm."""
    import timm

    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("convsmith.")]


def _row(name: str, parameters: bool) -> tuple[Any, ...]:
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    size = "x".join(str(side) for side in config.input_size) if config is not None else None
    row = (name, size, "published" if timm.is_model_pretrained(name) else None)
    return (*row, *_counted(name, config.input_size if config is not None else None)) if parameters else row


def _counted(name: str, size: tuple[int, ...] | None) -> tuple[int, int | None]:
    """Return parameters and MACs of one image; no MACs where the network cannot run without memory for its weights."""
    import timm
    import torch

    from convsmith.compression import cost

    with torch.device("meta"):
        model, macs = timm.create_model(name), None
        if size is not None:
            with contextlib.suppress(RuntimeError, NotImplementedError):
                macs = cost(model, size).macs
        return sum(weight.numel() for weight in model.parameters()), macs
