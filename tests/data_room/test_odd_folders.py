# ruff: noqa: PTH104
"""Folders and lists as people have them: links, pipes, marks, two forms of Unicode, numbers as names."""

import json
import os
import tracemalloc
import unicodedata

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from convsmith.data import Preprocessing, chosen_classes, image_files, load, pair
from convsmith.data.pictures import Files
from convsmith.errors import InvalidArgument
from tests.data_room.pictures_on_disk import folder, picture


def test_links_to_parents_and_to_other_classes_add_nothing(tmp_path):
    root = folder(tmp_path / "pets", count=8)
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "again").symlink_to(root / "cat")
    (root / "dog" / "self").symlink_to(root / "dog")
    data = load(f"imagefolder:{root}")
    assert sum(data.description.counts.values()) == 16
    assert len(image_files([root])) == 16
    elsewhere = folder(tmp_path / "elsewhere", classes=("more",), count=3) / "more"
    (root / "cat" / "linked").symlink_to(elsewhere)
    assert sum(load(f"imagefolder:{root}").description.counts.values()) == 19


def test_pipes_and_devices_are_no_pictures(tmp_path):
    root = folder(tmp_path / "pets", count=4)
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "cat" / "null.png").symlink_to("/dev/null")
    data = load(f"imagefolder:{root}")
    assert sum(data.description.counts.values()) == 8
    assert data.notes == ("2 files are not read, being no image or without an image extension: 2 .png",)
    with pytest.raises(InvalidArgument, match="must be a file"):
        load(f"list:{root / 'cat' / 'pipe.png'}")


def test_a_list_may_begin_with_a_mark_and_name_files_in_the_other_form(tmp_path):
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    for n in range(6):
        picture(tmp_path / f"{apart}{n}.png", seed=n)
    lines = "".join(f"{composed}{n}.png {(composed, apart, 'x')[n % 3]}\n" for n in range(6))
    (tmp_path / "list.txt").write_text(lines, encoding="utf-8-sig")
    assert load(f"list:{tmp_path / 'list.txt'}").classes == ("x", composed)


def test_class_folders_in_two_forms_are_one_class(tmp_path):
    for part, form in (("train", "NFC"), ("test", "NFD")):
        folder(tmp_path / part, classes=(unicodedata.normalize(form, "café"), "tea"), count=4)
    data = load(f"imagefolder:{tmp_path}")
    assert data.classes == ("café", "tea")
    assert data.description.counts["test"] == 8


def test_a_label_that_counts_no_classes_is_refused_at_once(tmp_path):
    for n in range(2):
        picture(tmp_path / f"{n}.png", seed=n)
    (tmp_path / "list.txt").write_text("0.png 0\n1.png 999999999\n")
    tracemalloc.start()
    with pytest.raises(InvalidArgument, match="label 999999999"):
        load(f"list:{tmp_path / 'list.txt'}")
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_ranges_of_folders_named_by_numbers_mean_the_numbers(tmp_path):
    names = tuple(str(n) for n in range(1, 12))
    classes = tuple(sorted(names))
    assert [classes[n] for n in chosen_classes("2-4", classes)] == ["2", "3", "4"]
    assert {classes[n] for n in chosen_classes("1-11", classes)} == set(names)
    root = folder(tmp_path / "numbers", classes=names, count=3)
    both = pair(f"imagefolder:{root}", f"imagefolder:{root}", target_classes="9-11")
    assert {both.source.classes[n] for n in both.shared} == {"9", "10", "11"}


def test_names_that_are_no_utf8(tmp_path):
    root = folder(tmp_path / "pets", count=4)
    os.rename(os.fsencode(root / "cat"), os.fsencode(root) + b"/c\xe9t")
    os.rename(os.fsencode(root / "dog" / "00.png"), os.fsencode(root) + b"/dog/\xff.png")
    data = load(f"imagefolder:{root}")
    assert set(data.classes) == {"c\\xe9t", "dog"}
    assert sum(data.description.counts.values()) == 8
    json.dumps(data.description.to_json()).encode("utf-8")
    "".join(data.train.name(n) for n in range(len(data.train))).encode("utf-8")


def test_an_existing_folder_is_a_data_set(tmp_path):
    root = folder(tmp_path / "pets", count=4)
    assert load(str(root)).classes == ("cat", "dog")
    assert load(str(root / "cat")).classes == ()


def test_a_file_takes_some_bytes_and_no_object(tmp_path):
    paths = [f"/data/train/n01440764/n01440764_{n:08d}.JPEG" for n in range(20_000)]
    tracemalloc.start()
    files = Files(paths)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 80 * len(paths)
    assert files.path(19_999) == paths[-1]
    assert files.path(0) == paths[0]


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "vit_tiny_patch16_224", "tf_efficientnet_lite0", "inception_v3"])
def test_a_folder_seen_through_a_network_gives_timms_tensors(tmp_path, name):
    draw = np.random.default_rng(0)
    for n in range(12):
        path = tmp_path / "ab"[n % 2] / f"{n}.{('jpg', 'png', 'bmp')[n % 3]}"
        path.parent.mkdir(exist_ok=True)
        size = tuple(draw.integers(40, 300, 2))
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    with torch.device("meta"):
        model = timm.create_model(name)
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    data = load(str(tmp_path), preprocessing=Preprocessing.from_model(model))
    assert data.description.preprocessing == Preprocessing.from_model(model)
    for split in data.splits.values():
        for n in range(len(split)):
            image = Image.open(split.name(n)).convert("RGB")
            assert torch.equal(split.fetch([n]).images[0], transform(image))
