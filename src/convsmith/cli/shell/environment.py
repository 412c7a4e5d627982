"""What a result depends on beside its settings: machine, versions, devices, command line, commits."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import convsmith
from convsmith.errors import InvalidArgument

#: the words after ``convsmith`` of the command that runs; set by `main`
COMMAND: ContextVar[tuple[str, ...]] = ContextVar("COMMAND", default=())

#: extras whose versions matter beside those that every result names
EXTRAS = (
    *("safetensors", "torchmetrics", "tyro", "rich", "pyyaml", "jinja2", "matplotlib"),
    *("mlxtend", "adversarial-robustness-toolbox", "torch-pruning", "onnx", "onnxscript"),
    *("tensorboard", "datasets", "pandas", "triton"),
)


def command() -> str:
    """Return the command line that runs, quoted for a shell."""
    return shlex.join(["convsmith", *COMMAND.get()])


def typed(flag: str) -> bool:
    """Tell whether the command that runs gives a flag itself, and not its file or preset."""
    return any(word.partition("=")[0].replace("_", "-") == flag for word in COMMAND.get())


def refuse_unread(where: Mapping[str, tuple[object, str]]) -> None:
    """Refuse flags that would be parsed and ignored.

    Args:
        where: of a flag, whether it is read here, and what it is read with; a file or preset may say more than is read.
    """
    for flag, (read, needed) in where.items():
        if not read and typed(flag):
            rule, hint = f"it is read with {needed} only", f"add {needed}, or leave {flag} out"
            raise InvalidArgument(rule, argument=flag, hint=hint)


def record() -> dict[str, Any]:
    """Return the environment as JSON-able values; loads torch."""
    import psutil

    from convsmith.report import machine

    found = machine.conditions()
    found["versions"] = {"convsmith": convsmith.__version__, **found["versions"], **machine.versions(EXTRAS)}
    return {
        "command": command(),
        **found,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "accelerators": accelerators(),
        "working_directory_commit": machine.commit(Path.cwd()),
    }


def accelerators() -> dict[str, str]:
    """Return the devices beside the CPU that torch can use, by the name ``--device`` takes."""
    import torch

    found = {}
    if torch.cuda.is_available():
        found = {f"cuda:{number}": torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found
