"""Cut-out photographs and drawings of Debian's `tuxpaint-stamps-default`, by kind, composed on a plain ground.

Licence: GPL-2 (Bill Kendrick and contributors; the package's copyright file names exceptions). Read from the installed
package (``apt-get install tuxpaint-stamps-default``), never copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from convsmith.errors import InvalidArgument

ROOT = Path("/usr/share/tuxpaint/stamps")
#: kinds of things that are there both as photographs and as drawings
KINDS = ("animals", "plants", "food", "vehicles", "town", "household")
#: classes of partial adaptation, from photographs to drawings: 17 drawings at the least of the first four, few or none
#: of the others; signs and the seasons' mixture are no kinds of things
DRAWN, ONLY_PHOTOGRAPHED = (
    ("animals", "food", "town", "vehicles"),
    ("clothes", "hobbies", "household", "plants", "space"),
)


@dataclass(frozen=True)
class Stamp:
    """One cut-out: ``kind`` is its first folder, ``family`` its whole folder, ``drawn`` tells drawings apart."""

    path: Path
    kind: str
    family: str
    drawn: bool

    @property
    def name(self) -> str:
        """Return the file's name without its ending."""
        return self.path.stem

    def composed(self, side: int = 256, *, ground: int = 255, share: float = 0.8) -> tuple[Image.Image, Tensor]:
        """Return the cut-out on a square ground of one grey, and where it lies: bool [side, side].

        The larger side of the cut-out takes ``share`` of the ground's.
        """
        with Image.open(self.path) as image:
            cut = image.convert("RGBA")
        cut = cut.crop(cut.getchannel("A").getbbox())
        scale = share * side / max(cut.size)
        cut = cut.resize([max(1, round(scale * s)) for s in cut.size], Image.Resampling.BICUBIC)
        place = ((side - cut.width) // 2, (side - cut.height) // 2)
        picture = Image.new("RGB", (side, side), (ground, ground, ground))
        picture.paste(cut, place, cut)
        mask = Image.new("L", (side, side), 0)
        mask.paste(cut.getchannel("A"), place)
        values = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8).view(side, side)
        return picture, values > 127


def stamps(*, root: Path = ROOT, kinds: tuple[str, ...] = KINDS) -> list[Stamp]:
    """Return every stamp of the kinds, sorted by path: photographs, and drawings (folders called cartoon)."""
    if not root.is_dir():
        raise InvalidArgument(
            "the stamps are not installed",
            argument="stamps",
            given=str(root),
            hint="apt-get install tuxpaint-stamps-default",
        )
    found = []
    for path in sorted(root.rglob("*.png")):
        parts = path.relative_to(root).parts[:-1]
        if parts and parts[0] in kinds:
            found.append(Stamp(path, parts[0], "/".join(parts), "cartoon" in parts))
    return found


def write_folders(root: Path, source: Path = ROOT) -> tuple[Path, Path]:
    """Write ``root/photographs/KIND`` and ``root/drawings/KIND``, the cut-outs of ``source`` on white; return both."""
    folders = root / "photographs", root / "drawings"
    for stamp in stamps(root=source, kinds=DRAWN + ONLY_PHOTOGRAPHED):
        name = "--".join((*stamp.family.split("/")[1:], stamp.name))
        out = folders[stamp.drawn] / stamp.kind / f"{name}.png"
        if not out.is_file() and (stamp.kind in DRAWN or not stamp.drawn):
            out.parent.mkdir(parents=True, exist_ok=True)
            stamp.composed()[0].save(out)
    return folders
