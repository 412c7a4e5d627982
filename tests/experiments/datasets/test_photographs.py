"""Sample photographs and cut-outs: what the studies see."""

import pytest
from PIL import Image

from convsmith.errors import InvalidArgument
from experiments.datasets.photographs import crops, photographs
from experiments.datasets.stamps import stamps, write_folders


def test_photographs_are_colour_and_small():
    found = photographs()
    assert {"chelsea", "china", "coffee"} <= set(found)
    assert all(p.mode == "RGB" and max(p.size) <= 512 for p in found.values())


def test_crops_are_the_same_for_a_seed_and_lie_inside():
    pictures = [Image.effect_noise((60, 40), 50).convert("RGB"), Image.new("RGB", (9, 30))]
    first, again, other = (crops(pictures, 7, seed=s) for s in (0, 0, 1))
    assert [c.tobytes() for c in first] == [c.tobytes() for c in again]
    assert [c.size for c in first] != [c.size for c in other]
    assert all(c.width <= 60 and c.height <= 40 for c in first)


def test_a_cut_out_lies_where_its_mask_says(tmp_path):
    folder = tmp_path / "animals" / "birds" / "cartoon"
    folder.mkdir(parents=True)
    cut = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    cut.paste((200, 10, 10, 255), (10, 5, 30, 15))
    cut.save(folder / "bird.png")
    (one,) = stamps(root=tmp_path)
    assert (one.kind, one.family, one.drawn, one.name) == ("animals", "animals/birds/cartoon", True, "bird")
    picture, mask = one.composed(100, share=0.5)
    assert picture.size == (100, 100)
    assert int(mask.sum()) == 50 * 25
    assert picture.getpixel((50, 50)) == (200, 10, 10)
    assert picture.getpixel((2, 2)) == (255, 255, 255)
    assert bool(mask[50, 50])
    assert not bool(mask[2, 2])


def test_without_the_package_the_error_names_it(tmp_path):
    with pytest.raises(InvalidArgument, match="tuxpaint-stamps-default"):
        stamps(root=tmp_path / "none")


def test_folders_hold_photographs_of_all_kinds_and_drawings_of_four(tmp_path):
    for name in ("food/fruit/pear", "food/fruit/cartoon/pear", "plants/fern", "plants/cartoon/fern", "symbols/sign"):
        file = tmp_path / "stamps" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (8, 8), (200, 10, 10, 255)).save(file)
    folders = write_folders(tmp_path / "out", source=tmp_path / "stamps")
    found = [sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png")) for folder in folders]
    assert found == [["food/fruit--pear.png", "plants/fern.png"], ["food/fruit--cartoon--pear.png"]]
