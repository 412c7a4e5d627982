"""Four drawing styles of the same emoji as four domains: the same things drawn by four houses, like Office's cameras.

Pictures come from the npm packages `emoji-datasource-google`, `-twitter`, `-facebook` (data MIT; images: Noto Emoji
Apache-2.0, Twemoji CC BY 4.0, Facebook's own, not for redistribution) and `openmoji` (CC BY-SA 4.0). They are fetched
into a folder of the user's and never committed. A class is a sub-group of Unicode's emoji list; skin-tone and gender
variants of one emoji share an identity, and an identity lies in one split.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from convsmith.errors import InvalidArgument, require

STYLES = ("google", "twitter", "facebook", "openmoji")
PACKAGES = {
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
    "facebook": "emoji-datasource-facebook@16.0.0",
    "openmoji": "openmoji@17.0.0",
}
#: side of the pictures written, and of the drawing inside, which a network's centre crop of 0.875 then keeps whole
SIDE, DRAWN = 96, 80


@dataclass(frozen=True)
class Emoji:
    """One emoji that all four styles draw: its class, its identity (without skin tone), its code and file names."""

    group: str
    identity: str
    code: str
    files: dict[str, str]


def listed(root: Path, *, least: int = 20) -> dict[str, list[Emoji]]:
    """Return, by sub-group, what all four styles draw; sub-groups with at least ``least`` identities only."""
    table = root / "google" / "package" / "emoji.json"
    if not table.is_file():
        raise InvalidArgument(
            "the emoji packages are not there",
            argument="emoji",
            given=str(root),
            hint=f"python -m experiments data emoji --out {root}",
        )
    drawn = {path.stem.upper() for path in (root / "openmoji/package/color/svg").glob("*.svg")}
    found: dict[str, list[Emoji]] = {}
    for entry in json.loads(table.read_text(encoding="utf-8")):
        for variant in (entry, *entry.get("skin_variations", {}).values()):
            code = variant["unified"]
            open_name = next((c for c in (code, code.replace("-FE0F", "")) if c in drawn), None)
            if open_name is None or not all(variant.get(f"has_img_{s}") for s in STYLES[:3]):
                continue
            files = {style: f"img/{style}/64/{variant['image']}" for style in STYLES[:3]}
            files["openmoji"] = f"color/svg/{open_name}.svg"
            group = entry["subcategory"].replace(" & ", "-").replace(" ", "-")
            found.setdefault(group, []).append(Emoji(group, entry["unified"], code, files))
    return {
        group: members
        for group, members in sorted(found.items())
        if len({emoji.identity for emoji in members}) >= least
    }


def fetch(root: Path) -> None:
    """Download the four packages with npm and unpack what is needed; what is there already is not fetched again."""
    wanted = ("package/emoji.json", "package/color/svg/")
    for style, package in PACKAGES.items():
        folder = root / style
        if (folder / "package").is_dir():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise InvalidArgument(
                "npm could not fetch a package",
                argument=package,
                given=str(getattr(error, "stderr", "") or error)[-200:],
                hint="install npm, and check the network connection",
            ) from None
        archive = folder / done.stdout.split()[-1]
        with tarfile.open(archive) as packed:
            names = (*wanted, f"package/img/{style}/64/")
            packed.extractall(folder, [m for m in packed if m.name.startswith(names)], filter="data")
        archive.unlink()


def write_folders(
    root: Path, *, least: int = 20, variants: int = 1, progress: Callable[[int, int, str], None] | None = None
) -> Counter[str]:
    """Write ``root/styles/STYLE/CLASS/IDENTITY--CODE.png`` on white; return the number of pictures by class.

    Args:
        root: where `fetch` put the packages.
        least: identities a class must have.
        variants: at most so many pictures of one identity (its skin tones), the plain one first.
        progress: called with (done, total, note).
    """
    renderer = require("resvg_py", "dev")
    groups = listed(root, least=least)
    counts: Counter[str] = Counter()
    chosen = [
        emoji
        for members in groups.values()
        for identity in dict.fromkeys(e.identity for e in members)
        for emoji in [e for e in members if e.identity == identity][:variants]
    ]
    for number, emoji in enumerate(chosen):
        counts[emoji.group] += 1
        for style, name in emoji.files.items():
            out = root / "styles" / style / emoji.group / f"{emoji.identity}--{emoji.code}.png"
            if out.is_file():
                continue
            path = root / style / "package" / name
            data = (
                renderer.svg_to_bytes(svg_path=str(path), width=DRAWN) if path.suffix == ".svg" else path.read_bytes()
            )
            with Image.open(io.BytesIO(bytes(data))) as image:
                drawn = image.convert("RGBA").resize((DRAWN, DRAWN), Image.Resampling.BICUBIC)
            out.parent.mkdir(parents=True, exist_ok=True)
            ground = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
            ground.paste(drawn, ((SIDE - DRAWN) // 2, (SIDE - DRAWN) // 2), drawn)
            ground.save(out)
        if progress is not None:
            progress(number + 1, len(chosen), emoji.group)
    return counts
