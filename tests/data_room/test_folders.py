"""Folders and lists of images: classes, splits, copies, and one clear refusal for everything that is wrong."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms.functional import pil_to_tensor

from convsmith.data import Loader, Preprocessing, load
from convsmith.data.source import Request, numbered
from convsmith.errors import InvalidArgument
from tests.data_room.pictures_on_disk import folder, picture


def test_class_folders_become_classes_and_pixels_are_the_files(tmp_path):
    root = folder(tmp_path / "pets", classes=("dog", "cat", "ant"), count=10)
    data = load(f"imagefolder:{root}")
    assert data.classes == ("ant", "cat", "dog")
    assert data.description.counts == {"train": 21, "validation": 3, "test": 6}
    assert (data.description.size, data.description.channels) == ((10, 12), 3)
    paths = sorted(root.rglob("*.png"))
    for split in data.splits.values():
        for position, number in enumerate(split.index.tolist()):
            expected = torch.from_numpy(np.array(Image.open(paths[number]))).permute(2, 0, 1)
            assert_close(split.pixels([position])[0], expected.float() / 255, atol=1e-7, rtol=0)
            assert data.classes[int(split.labels[position])] == paths[number].parent.name


def test_pictures_of_unequal_size_need_a_size(tmp_path):
    root = folder(tmp_path / "pets", count=4)
    picture(root / "cat" / "wide.png", size=(10, 30))
    with pytest.raises(InvalidArgument, match=r"differ in size[\s\S]*argument: size[\s\S]*224"):
        load(f"imagefolder:{root}")
    data = load(f"imagefolder:{root}", size=8, channels=1, augment="imagenet")
    batch = next(Loader(data.train, 4, shuffle=True, augment=True).epoch(0))
    assert batch.images.shape == (4, 1, 8, 8)
    wide = Image.open(root / "cat" / "wide.png").convert("L")
    grey = Preprocessing((1, 8, 8), mean=(0.0,), std=(1.0,), crop_pct=1.0).transform()(wide)
    number = sorted(root.rglob("*.png")).index(root / "cat" / "wide.png")
    split = next(s for s in data.splits.values() if number in s.index.tolist())
    position = split.index.tolist().index(number)
    assert torch.equal(split.pixels([position])[0], grey)


@pytest.mark.parametrize(
    ("parts", "counts"),
    [
        (("train", "val", "test"), {"train": 20, "validation": 6, "test": 8}),
        (("train", "test"), {"train": 18, "validation": 2, "test": 8}),
        (("train", "val"), {"train": 18, "validation": 2, "test": 6}),
    ],
)
def test_official_parts_are_kept(tmp_path, parts, counts):
    sizes = {"train": 10, "val": 3, "test": 4}
    for part in parts:
        folder(tmp_path / part, count=sizes[part])
    data = load(f"imagefolder:{tmp_path}")
    assert data.description.counts == counts
    assert data.classes == ("cat", "dog")
    held_out = sorted(p for p in tmp_path.rglob("*.png") if p.parts[-3] == parts[-1])
    expected = {pil_to_tensor(Image.open(p)).numpy().tobytes() for p in held_out}
    got = {(image * 255).round().byte().numpy().tobytes() for image in data.test.pixels(slice(None))}
    assert got == expected


def test_copies_stay_in_one_split_and_copies_of_test_images_leave_training(tmp_path):
    root = folder(tmp_path / "pets", count=6)
    for n in range(6):
        shutil.copy(root / "cat" / f"{n:02d}.png", root / "cat" / f"{n:02d}-copy.png")
        Image.open(root / "dog" / f"{n:02d}.png").save(root / "dog" / f"{n:02d}-again.bmp")
    for seed in range(4):
        data = load(f"imagefolder:{root}", seed=seed)
        assert sum(map(len, data.splits.values())) == 24
        marks = [{i.numpy().tobytes() for i in s.pixels(slice(None))} for s in data.splits.values()]
        assert all(not a & b for a, b in itertools.combinations(marks, 2))
    for part, count in (("train", 6), ("test", 2)):
        folder(tmp_path / "official" / part, count=count)
    shutil.copy(tmp_path / "official/test/cat/00.png", tmp_path / "official/train/cat/leak.png")
    data = load(f"imagefolder:{tmp_path / 'official'}")
    assert data.description.counts == {"train": 10, "validation": 2, "test": 4}
    assert [note for note in data.notes if "1 images are left out as copies" in note]


def test_hidden_files_are_passed_over_and_other_files_are_told(tmp_path):
    root = folder(tmp_path / "pets", count=4)
    (root / "cat" / "notes.txt").write_text("tabby")
    (root / "cat" / ".DS_Store").write_text("x")
    (root / ".ipynb_checkpoints").mkdir()
    data = load(f"imagefolder:{root}")
    assert data.classes == ("cat", "dog")
    assert data.notes == ("1 files are not read, being no image or without an image extension: 1 .txt",)


def broken_ones(root):
    """Break two images: text under an image's name, and a file cut in its middle."""
    (root / "cat" / "00.png").write_text("not an image")
    whole = (root / "dog" / "03.png").read_bytes()
    (root / "dog" / "03.png").write_bytes(whole[: len(whole) // 2])
    return root / "cat" / "00.png", root / "dog" / "03.png"


def test_broken_files_are_all_listed_and_refused(tmp_path):
    bad = broken_ones(folder(tmp_path / "pets"))
    with pytest.raises(InvalidArgument) as caught:
        load(f"imagefolder:{tmp_path / 'pets'}")
    text = str(caught.value)
    assert "2 of 20 image files cannot be read" in text
    assert all(str(path) in text for path in bad)
    assert 'broken="skip"' in text


def test_broken_files_are_skipped_and_reported(tmp_path):
    bad = broken_ones(folder(tmp_path / "pets"))
    data = load(f"imagefolder:{tmp_path / 'pets'}", broken="skip")
    assert [file.path for file in data.skipped] == [str(path) for path in bad]
    assert data.skipped[0].reason == "not an image"
    assert "truncated" in data.skipped[1].reason
    numbers = torch.cat([split.index for split in data.splits.values()]).sort().values.tolist()
    assert numbers == [n for n in range(20) if n not in (0, 13)]
    assert load(f"imagefolder:{folder(tmp_path / 'sound')}", broken="skip").skipped == ()


def test_an_empty_file_is_broken(tmp_path):
    root = folder(tmp_path / "pets")
    (root / "cat" / "00.png").write_bytes(b"")
    with pytest.raises(InvalidArgument, match=r"cat.00\.png: not an image"):
        load(f"imagefolder:{root}")


def test_a_class_of_broken_files_only_is_an_error_even_when_skipping(tmp_path):
    root = folder(tmp_path / "pets", count=1)
    (root / "cat" / "00.png").write_text("x")
    with pytest.raises(InvalidArgument, match=r"every image of a class is broken[\s\S]*cat"):
        load(f"imagefolder:{root}", broken="skip")


def test_mixed_channels_name_the_files_and_are_converted_on_request(tmp_path):
    root = folder(tmp_path / "pets", count=5)
    grey = picture(root / "dog" / "grey.png", mode="L")
    picture(root / "dog" / "clear.png", mode="RGBA")
    with pytest.raises(InvalidArgument) as caught:
        load(f"imagefolder:{root}")
    text = str(caught.value)
    assert str(grey) in text
    assert "channels=3" in text
    data = load(f"imagefolder:{root}", channels=3)
    assert data.description.channels == 3
    assert load(f"imagefolder:{root}", channels=1).train.pixels([0]).shape == (1, 1, 10, 12)


def test_alpha_is_composed_on_white(tmp_path):
    root = folder(tmp_path / "pets", mode="RGBA")
    data = load(f"imagefolder:{root}")
    number = int(data.train.index[0])
    values = torch.from_numpy(np.array(Image.open(sorted(root.rglob("*.png"))[number]))).permute(2, 0, 1) / 255
    expected = values[:3] * values[3:] + (1 - values[3:])
    assert data.description.channels == 3
    assert_close(data.train.pixels([0])[0], expected, atol=1 / 255, rtol=0)


def empty(root):
    root.mkdir()


def texts(root):
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        (root / name / "a.txt").write_text("x")


def one_class(root):
    folder(root, classes=("cat",))


def flat(root):
    picture(root / "a.png")


def file(root):
    root.write_text("x")


def empty_class(root):
    folder(root)
    (root / "bird").mkdir()


def new_test_class(root):
    folder(root / "train")
    folder(root / "test", classes=("cat", "yak"))


def nothing(root):
    pass


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (nothing, r"does not exist[\s\S]*exists"),
        (file, "must be a folder"),
        (empty, r"no image in a class folder[\s\S]*0 sub-folders, 0 files"),
        (texts, r"no image in a class folder[\s\S]*endings \.txt"),
        (flat, r"no image in a class folder[\s\S]*images:.* reads 1 images"),
        (one_class, r"two or more[\s\S]*'cat'"),
        (empty_class, r"holds no image[\s\S]*bird"),
        (new_test_class, r"every class needs training images[\s\S]*yak"),
    ],
)
def test_folders_that_hold_something_else(tmp_path, make, rule):
    make(tmp_path / "root")
    with pytest.raises(InvalidArgument, match=rule):
        load(f"imagefolder:{tmp_path / 'root'}")


def test_pictures_without_classes(tmp_path):
    for n in range(10):
        picture(tmp_path / "a" / f"{n}.png", seed=n)
    data = load(f"images:{tmp_path}")
    assert data.classes == ()
    assert data.description.counts == {"train": 7, "validation": 1, "test": 2}
    assert set(data.train.labels.tolist()) == {-1}
    empty(tmp_path / "none")
    with pytest.raises(InvalidArgument, match="no image"):
        load(f"images:{tmp_path / 'none'}")


def test_a_list_keeps_the_numbers_it_gives(tmp_path):
    for n in range(6):
        picture(tmp_path / "my photos" / f"{n}.png", seed=n)
    (tmp_path / "list.txt").write_text("# names\n" + "".join(f"my photos/{n}.png {2 * (n % 2)}\n" for n in range(6)))
    data = load(f"list:{tmp_path / 'list.txt'}")
    assert data.classes == ("0", "1", "2")
    for split in data.splits.values():
        assert split.labels.tolist() == [2 * (n % 2) for n in split.index.tolist()]
    (tmp_path / "else.txt").write_text("".join(f"{n}.png {'ab'[n % 2]}\n" for n in range(6)))
    named = load(f"list:{tmp_path / 'else.txt'}", root=tmp_path / "my photos")
    assert named.classes == ("a", "b")
    assert torch.equal(named.train.pixels([0]), data.train.pixels([0]))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "the list is empty"),
        ("0.png\n", r"line 1: '0\.png'"),
        ("0.png 0\n1.png -1\n", "count from 0"),
        ("0.png 0\n1.png 0\n", "two or more"),
        ("0.png 0\nlost.png 1\n", r"lost\.png: .*No such file"),
    ],
)
def test_bad_lists(tmp_path, text, rule):
    for n in range(2):
        picture(tmp_path / f"{n}.png", seed=n)
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InvalidArgument, match=rule):
        load(f"list:{tmp_path / 'list.txt'}")


def test_a_list_that_is_no_text(tmp_path):
    with pytest.raises(InvalidArgument, match="text file"):
        load(f"list:{picture(tmp_path / 'a.png')}")


def test_labels_that_are_no_whole_numbers_are_words():
    words = ["--3", "1", "9" * 30]
    assert numbered(words, Request("list", ""))[0] == ("--3", "1", "9" * 30)
