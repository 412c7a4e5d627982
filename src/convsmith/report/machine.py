"""What stands beside every number: machine, versions, commit, load."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "accelerate", "torchao", "onnxruntime")


def cpu_name() -> str:
    """Return the processor's own name, or its architecture where the system does not say."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine_kind() -> str:
    """Return a short name for file names, like ``2core-x86_64``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores}core-{platform.machine()}"


def cpu_capability() -> str:
    """Return the vector instructions torch uses here, like ``avx2`` or ``avx512``, for file names."""
    return torch.backends.cpu.get_cpu_capability().lower().replace(" ", "-").replace("_", "-")


def device_kind(device: str | torch.device = "cpu") -> str:
    """Return ``cpu`` or the GPU's name in lower case with dashes, for file names."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device).lower().replace(" ", "-")
    return device.type


def commit(here: Path | None = None) -> str:
    """Return the commit of the tree around ``here`` (default: of the source; ``+changes`` when it differs), or
    ``unknown`` outside a checkout.
    """
    source = Path(__file__).resolve()
    # an installed copy lies in somebody else's checkout, where their commit is not ours
    ours = ["git", "ls-files", "--error-unmatch", source.name]
    describe = "git --no-optional-locks describe --always --exclude=* --abbrev=12 --dirty=+changes"
    try:
        if here is None and subprocess.run(ours, cwd=source.parent, capture_output=True).returncode:
            return "unknown"
        found = subprocess.run(describe.split(), cwd=here or source.parent, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return "unknown" if found.returncode else found.stdout.strip()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def conditions(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the conditions of a measurement as JSON.

    Examples:
        >>> conditions()["device"]
        'cpu'
    """
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_kind(),
        "cpu": cpu_name(),
        "capability": cpu_capability(),
        "device": device_kind(device),
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "versions": {"python": platform.python_version(), **versions(_PACKAGES)},
        "commit": commit(),
    }
