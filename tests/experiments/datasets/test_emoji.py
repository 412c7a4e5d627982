"""Emoji in four styles, from a small copy of what the packages hold."""

import json

import pytest
from PIL import Image

from convsmith.errors import InvalidArgument
from experiments.datasets import emoji

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="72" height="72"><rect width="36" height="72" fill="#00f"/></svg>'


@pytest.fixture
def packages(tmp_path):
    """Two sub-groups: three cats (one with a skin tone, one that OpenMoji lacks) and one flag."""

    def entry(code, group, **more):
        return {
            "unified": code, "image": f"{code.lower()}.png", "subcategory": group,
            "has_img_google": True, "has_img_twitter": True, "has_img_facebook": True, **more,
        }  # fmt: skip

    tone = {"1F3FB": entry("1F408-1F3FB", "")}
    table = [
        entry("1F408-FE0F", "cat & face", skin_variations=tone),
        entry("1F409", "cat & face"),
        entry("1F410", "cat & face"),
        entry("1F411", "flag", has_img_facebook=False),
    ]
    for style in emoji.STYLES[:3]:
        folder = tmp_path / style / "package" / "img" / style / "64"
        folder.mkdir(parents=True)
        for code in ("1f408-fe0f", "1f408-1f3fb", "1f409", "1f410", "1f411"):
            Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(folder / f"{code}.png")
        (tmp_path / style / "package" / "emoji.json").write_text(json.dumps(table))
    svg = tmp_path / "openmoji" / "package" / "color" / "svg"
    svg.mkdir(parents=True)
    for code in ("1F408", "1F408-1F3FB", "1F409", "1F411"):
        (svg / f"{code}.svg").write_text(SVG)
    return tmp_path


def test_only_what_all_four_draw_counts_and_variants_share_an_identity(packages):
    assert emoji.listed(packages, least=3) == {}
    (members,) = emoji.listed(packages, least=2).values()
    assert [e.code for e in members] == ["1F408-FE0F", "1F408-1F3FB", "1F409"]
    assert [e.identity for e in members] == ["1F408-FE0F", "1F408-FE0F", "1F409"]


def test_folders_hold_the_same_pictures_in_every_style_on_white(packages):
    assert emoji.write_folders(packages, least=2) == {"cat-face": 2}
    names = {style: sorted(p.name for p in (packages / "styles" / style).rglob("*.png")) for style in emoji.STYLES}
    assert set(map(tuple, names.values())) == {("1F408-FE0F--1F408-FE0F.png", "1F409--1F409.png")}
    with Image.open(packages / "styles/google/cat-face/1F409--1F409.png") as clear:
        assert clear.getpixel((48, 48)) == (255, 255, 255)
    with Image.open(packages / "styles/openmoji/cat-face/1F409--1F409.png") as drawn:
        assert (drawn.getpixel((10, 48)), drawn.getpixel((90, 48))) == ((0, 0, 255), (255, 255, 255))
    assert emoji.write_folders(packages, least=2, variants=2) == {"cat-face": 3}


def test_without_the_packages_the_error_says_how_to_fetch_them(tmp_path):
    with pytest.raises(InvalidArgument, match="experiments data emoji"):
        emoji.listed(tmp_path)
