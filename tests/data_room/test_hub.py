"""Hugging Face's sets, read from small local folders in its own formats."""

import numpy as np
import pytest
import torch
from PIL import Image

from convsmith.data import load
from convsmith.errors import InvalidArgument

datasets = pytest.importorskip("datasets")


def rows(count, *, start=0, size=(7, 5)):
    draw = np.random.default_rng(start)
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


def saved(root, *, kind=None, labels=None, parts=(("train", 20), ("test", 6)), columns=("image", "label")):
    """Write a Hugging Face data set as its own library saves it."""
    held = {}
    for start, (part, count) in enumerate(parts):
        values = [n % 2 for n in range(count)] if labels is None else labels(part, count)
        features = datasets.Features(
            {columns[0]: datasets.Image(), columns[1]: kind or datasets.ClassLabel(names=["no", "yes"])}
        )
        held[part] = datasets.Dataset.from_dict(
            {columns[0]: rows(count, start=start), columns[1]: values}, features=features
        )
    datasets.DatasetDict(held).save_to_disk(root)
    return root


def test_a_saved_hugging_face_set(tmp_path):
    data = load(f"hf:{saved(tmp_path / 'set')}")
    assert data.classes == ("no", "yes")
    assert data.description.counts == {"train": 18, "validation": 2, "test": 6}
    assert (data.description.size, data.description.channels) == ((7, 5), 3)
    expected = torch.from_numpy(np.stack([np.asarray(i) for i in rows(6, start=1)])).permute(0, 3, 1, 2)
    assert torch.equal((data.test.pixels(slice(None)) * 255).round().byte(), expected)
    assert data.test.labels.tolist() == [0, 1] * 3


def test_a_folder_of_parquet_files(tmp_path):
    (tmp_path / "data").mkdir()
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    for part, count in (("train", 20), ("validation", 6)):
        held = datasets.Dataset.from_dict(
            {"img": rows(count, start=count), "label": [n % 2 for n in range(count)]}, features=features
        )
        held.to_parquet(tmp_path / "data" / f"{part}-00000-of-00001.parquet")
    data = load(f"hf:{tmp_path}", size=4)
    assert data.classes == ("no", "yes")
    assert data.description.counts == {"train": 18, "validation": 2, "test": 6}
    assert data.train.pixels([0]).shape == (1, 3, 4, 4)


def test_labels_in_words_and_labels_in_numbers(tmp_path):
    words = saved(tmp_path / "w", kind=datasets.Value("string"), labels=lambda _, n: ["b", "a"] * (n // 2))
    assert load(f"hf:{words}").classes == ("a", "b")
    assert load(f"hf:{words}").test.labels.tolist() == [1, 0] * 3
    numbers = saved(tmp_path / "n", kind=datasets.Value("int64"), labels=lambda _, n: [0, 2] * (n // 2))
    assert load(f"hf:{numbers}").classes == ("0", "1", "2")


def test_a_test_part_without_labels_is_told_and_not_used(tmp_path):
    root = saved(tmp_path / "s", labels=lambda part, n: [-1] * n if part == "test" else [0, 1] * (n // 2))
    data = load(f"hf:{root}")
    assert data.description.counts == {"train": 14, "validation": 2, "test": 4}
    assert data.notes == ("the 6 images of an official part without labels are not read",)


def test_columns_and_parts_that_must_be_chosen(tmp_path):
    root = saved(tmp_path / "s", columns=("photo", "kind"), parts=(("train", 20), ("extra", 4)))
    data = load(f"hf:{root}")
    assert data.notes == ("parts not read: extra",)
    assert load(f"hf:{root}?image=photo&label=kind").description.counts == data.description.counts
    with pytest.raises(InvalidArgument, match="no such column"):
        load(f"hf:{root}?label=kinds")
    with pytest.raises(InvalidArgument, match=r"'colour'[\s\S]*known: config, image, label"):
        load(f"hf:{root}?colour=red")
    other = saved(tmp_path / "o", kind=datasets.Value("int64"), columns=("image", "kind"))
    with pytest.raises(InvalidArgument, match=r"0 label columns[\s\S]*label=COLUMN"):
        load(f"hf:{other}")
    assert load(f"hf:{other}?label=kind").classes == ("0", "1")


def test_copies_leave_training_here_too(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    train, test = rows(20), rows(6, start=1)
    train[4] = test[0]
    held = {
        part: datasets.Dataset.from_dict({"image": i, "label": [n % 2 for n in range(len(i))]}, features=features)
        for part, i in (("train", train), ("test", test))
    }
    datasets.DatasetDict(held).save_to_disk(tmp_path / "s")
    data = load(f"hf:{tmp_path / 's'}")
    assert sum(data.description.counts.values()) == 25
    assert 4 not in torch.cat([data.train.index, data.validation.index]).tolist()


def test_an_unknown_set_offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidArgument, match="cannot be downloaded or read"):
        load("hf:nobody/nothing-at-all")


def test_a_missing_package_is_named(monkeypatch):
    import sys

    from convsmith.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"convsmith\[hub\]"):
        load("hf:anything")


@pytest.mark.parametrize("checked", [2000, 5])
def test_broken_and_missing_images_are_refused_or_skipped(tmp_path, monkeypatch, checked):
    import io

    from convsmith.data import checking

    monkeypatch.setattr(checking, "CHECKED", checked)
    stored = []
    for image in rows(20):
        stream = io.BytesIO()
        image.save(stream, "PNG")
        stored.append({"bytes": stream.getvalue(), "path": None})
    stored[3], stored[8] = {"bytes": b"no image", "path": None}, None
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    held = datasets.Dataset.from_dict({"image": stored, "label": [0, 1] * 10}, features=features)
    datasets.DatasetDict({"train": held}).save_to_disk(tmp_path / "s")
    with pytest.raises(InvalidArgument, match=r"2 of 20[\s\S]*image 3: not an image[\s\S]*image 8: there is no image"):
        load(f"hf:{tmp_path / 's'}")
    data = load(f"hf:{tmp_path / 's'}", broken="skip")
    assert len(data.skipped) == 2
    assert sorted(torch.cat([s.index for s in data.splits.values()]).tolist()) == [
        n for n in range(20) if n not in (3, 8)
    ]


def test_a_set_too_large_to_look_at_says_so_and_names_a_broken_image_when_it_is_reached(tmp_path, monkeypatch):
    from convsmith.data import checking, hub
    from convsmith.errors import RunFailed

    root = saved(tmp_path / "s")
    whole = load(f"hf:{root}")
    monkeypatch.setattr(checking, "CHECKED", 5)
    monkeypatch.setattr(hub, "_LOOKED_ROWS", 10)
    data = load(f"hf:{root}")
    assert "1 of 26 files were looked at" in data.notes[0]
    assert torch.equal(data.test.fetch(range(6)).images, whole.test.fetch(range(6)).images)
    held = datasets.load_from_disk(root)
    stored = (
        held["test"]
        .cast_column("image", datasets.Image(decode=False))
        .map(
            lambda row, n: {"image": {"bytes": b"x" if n == 4 else row["image"]["bytes"], "path": None}},
            with_indices=True,
        )
    )
    held["test"] = stored.cast_column("image", datasets.Image())
    held.save_to_disk(tmp_path / "t")
    with pytest.raises(RunFailed, match="image 24: not an image"):
        load(f"hf:{tmp_path / 't'}").test.fetch(range(6))


def test_a_stream_is_refused_with_the_reason(tmp_path):
    place = saved(tmp_path / "set")
    with pytest.raises(InvalidArgument, match="stream cannot be divided by class") as error:
        load(f"hf:{place}?streaming=1")
    assert "wds:SHARDS" in str(error.value)
    assert load(f"hf:{place}?streaming=0").description.counts["train"] == 18


def test_several_labels_an_image_and_columns_without_images_are_refused(tmp_path):
    """Regression: every list of labels became a class of its own."""
    several = datasets.Sequence(datasets.Value("int64"))
    root = saved(tmp_path / "several", kind=several, labels=lambda _, n: [[0, 1]] * n)
    with pytest.raises(InvalidArgument, match="one label"):
        load(f"hf:{root}")
    root = saved(tmp_path / "one", kind=datasets.Value("float32"), labels=lambda _, n: [0.5, 1.5] * (n // 2))
    with pytest.raises(InvalidArgument, match="holds no images"):
        load(f"hf:{root}?image=label")
