"""``convsmith doctor``: show versions and devices, test them with --deep."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from convsmith.cli.shell import environment, terminal
from convsmith.cli.shell.options import Listing, option
from convsmith.errors import RunFailed

EXAMPLES = ("doctor", "doctor --deep", "doctor --deep --json")


@dataclass(frozen=True, kw_only=True)
class Arguments(Listing):
    """Show versions and devices; with --deep also compute something on each. Paste the output into a bug report."""

    deep: bool = option(False, "run a short self-test of devices, precision, compiler, processes and disk")


def run(arguments: Arguments) -> dict[str, Any]:
    """Print the environment, run the checks; a failed check ends with exit code 1."""
    found = environment.record()
    terminal.say(*_lines(found))
    if not arguments.deep:
        return {"environment": found}
    outcomes = {name: _outcome(check) for name, check in checks(list(found["accelerators"])).items()}
    for name, (verdict, text) in outcomes.items():
        terminal.say(f"{name:<12} {verdict:<5} {text}")
    failed = [name for name, (verdict, _) in outcomes.items() if verdict == "fail"]
    if failed:
        raise RunFailed("the self-test failed", given=", ".join(failed), hint="see the lines above")
    return {"environment": found, "checks": {name: list(outcome) for name, outcome in outcomes.items()}}


def _lines(found: dict[str, Any]) -> list[str]:
    devices = ", ".join(f"{name} ({kind})" for name, kind in found["accelerators"].items()) or "none"
    packages = [
        f"{name} {version}" for name, version in found["versions"].items() if name not in ("convsmith", "python")
    ]
    rows = [", ".join(packages[start : start + 5]) for start in range(0, len(packages), 5)]
    return [
        f"convsmith    {found['versions']['convsmith']}, commit {found['commit']}",
        f"python       {platform.python_implementation()} {platform.python_version()} at {sys.executable}",
        f"system       {found['system']}",
        f"processor    {found['cpu']}, {found['machine']}, {found['memory_gb']} GB, load {found['load'][0]}",
        f"threads      {found['threads']}",
        f"accelerators {devices}",
        f"packages     {rows[0]}",
        *(f"             {row}" for row in rows[1:]),
    ]


def _outcome(check: Callable[[], str]) -> tuple[str, str]:
    began = time.monotonic()
    try:
        text = check()
    except _Absent as absent:
        return "none", str(absent)
    except Exception as error:  # noqa: BLE001  (the purpose of a self-test is to say which part raises what)
        return "fail", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return "ok", f"{text} ({time.monotonic() - began:.1f} s)"


class _Absent(Exception):
    """The machine lacks the part; this is no failure."""


def checks(accelerators: list[str]) -> dict[str, Callable[[], str]]:
    """Return the checks by name; each returns a line or raises."""
    return {
        **{name: partial(_convolution, name) for name in ("cpu", *accelerators)},
        "bf16": partial(_bfloat16, accelerators[0] if accelerators else "cpu"),
        "compile": _compile,
        "gloo": _gloo,
        "write": _write,
    }


def _convolution(device: str) -> str:
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float32)
    w = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float32)
    wide = functional.conv2d(x.double(), w.double())
    error = (functional.conv2d(x.to(device), w.to(device)).cpu().double() - wide).abs().max().item()
    if error > 1e-2:  # TF32 keeps ten bits of mantissa
        raise ArithmeticError(f"convolution differs from float64 by {error:.2e}")
    return f"convolution agrees with float64 to {error:.0e}"


def _bfloat16(device: str) -> str:
    import torch

    layer = torch.nn.Linear(16, 16).to(device)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        layer(torch.ones(2, 16, device=device)).sum().backward()
    if layer.weight.grad is None or not torch.isfinite(layer.weight.grad).all():
        raise ArithmeticError("the gradient under autocast is not finite")
    return f"forward and backward under autocast on {device}"


def _compile() -> str:
    import torch

    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1

    compiled = torch.compile(twice, backend="eager", fullgraph=True)
    if not torch.equal(compiled(torch.ones(3)), torch.full((3,), 3.0)):
        raise ArithmeticError("the compiled function gave another value")
    compilers = [name for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name and shutil.which(name)]
    if not compilers:
        raise _Absent("graphs are captured, but there is no C++ compiler for the inductor backend on a CPU")
    return f"graphs are captured; {compilers[0]} is there for the inductor backend"


def _gloo() -> str:
    import torch
    from torch import distributed

    if not distributed.is_available():
        raise _Absent("this torch is built without distributed")
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            value = torch.ones(1)
            distributed.all_reduce(value)
        finally:
            distributed.destroy_process_group()
    return "one process reduced with itself"


def _write() -> str:
    with tempfile.NamedTemporaryFile(dir=Path.cwd(), prefix=".convsmith-") as file:
        file.write(b"0" * 65536)
        file.flush()
    return f"the working directory is writable, {shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free"
