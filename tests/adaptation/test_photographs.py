"""A pretrained network on pictures on disk: its own preprocessing, a new head, a target without labels."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from convsmith.adaptation import InputOptions, adapt
from convsmith.adaptation.inputs import resolve
from convsmith.cli.main import main
from convsmith.data import Preprocessing
from convsmith.errors import InvalidArgument
from convsmith.models.storage import load_model

TINTS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def write(folder, count, tint, rng):
    folder.mkdir(parents=True)
    for k in range(count):
        height, width = (int(side) for side in rng.integers(40, 70, 2))
        pixels = 0.4 * rng.integers(0, 255, (height, width, 3)) + 0.6 * np.array(tint)
        Image.fromarray(pixels.astype("uint8")).save(folder / f"{k}.png")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, tint in TINTS.items():
        write(root / "catalogue" / name, 8, tint, rng)
    write(root / "photos", 9, (200, 30, 30), rng)
    return root


@pytest.mark.parametrize("spec", ["photos", "images:photos"])
def test_images_are_what_the_networks_own_transform_makes(pictures, monkeypatch, spec):
    monkeypatch.chdir(pictures)
    wanted = Preprocessing((3, 32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), crop_pct=0.875)
    inputs = resolve("catalogue", spec, InputOptions(preprocessing=wanted))
    assert inputs.classes == ("blue", "green", "red")
    assert len(inputs.target) == 9
    assert bool((inputs.target_labels == -1).all())
    timms = timm.data.create_transform(
        (3, 32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), crop_pct=0.875, interpolation="bicubic"
    )
    batch = inputs.target.fetch(range(9))
    for row, number in enumerate(batch.index.tolist()):
        assert torch.equal(batch.images[row], timms(Image.open(pictures / "photos" / f"{number}.png")))
    smaller = resolve("catalogue", spec, InputOptions(preprocessing=wanted, size=24))
    assert smaller.source.description.size == (24, 24)
    with pytest.raises(InvalidArgument, match="argument: preprocessing"):
        InputOptions(preprocessing={"size": 3})


def test_a_saved_network_of_other_classes_adapts_to_loose_pictures(pictures, tmp_path, capsys):
    torch.manual_seed(0)
    cfg = {"input_size": (3, 64, 64), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 0.875}
    network = timm.create_model("test_efficientnet", num_classes=12, pretrained_cfg_overlay=cfg)
    timm.models.save_for_hf(network, tmp_path / "net")
    flags = ["--method", "dann", "--set", "hidden=[4]", "--set", "head_lr_mult=10", "--steps", "2", "--num-evals", "1"]
    where = [
        "--source",
        str(pictures / "catalogue"),
        "--target",
        str(pictures / "photos"),
        "--out",
        str(tmp_path / "run"),
    ]
    more = ["--model", str(tmp_path / "net"), "--batch-size", "4", "--no-reference", "--device", "cpu"]
    assert main(["adapt", *where, *more, *flags]) == 0
    assert "the classifier is new, 3 classes" in capsys.readouterr().err
    made = load_model(tmp_path / "run")
    assert made.model.num_classes == 3
    assert (made.preprocessing.input_size, made.preprocessing.mean) == ((3, 64, 64), (0.5, 0.5, 0.5))
    assert (made.preprocessing.interpolation, made.preprocessing.crop_pct) == ("bicubic", 0.875)
    assert len((tmp_path / "run" / "predictions.csv").read_text().splitlines()) == 10


def test_both_domains_are_changed_at_random_and_read_by_workers_to_the_same_weights(pictures):
    def weights(**options):
        torch.manual_seed(0)
        network = timm.create_model("test_efficientnet", num_classes=3, drop_path_rate=0.0)
        how = {"method": "dann", "steps": 2, "batch_size": 4, "hidden": (4,), "num_evals": 1, "device": "cpu"}
        places = (pictures / "catalogue", pictures / "photos")
        found = adapt(network, *places, size=32, reference=None, **how, **options)
        return torch.cat([value.flatten().double() for value in found.model.state_dict().values()])

    plain, changed = weights(), weights(augment="imagenet")
    assert not torch.equal(plain, changed)
    assert torch.equal(changed, weights(augment="imagenet", workers=2))
    inputs = resolve(pictures / "catalogue", pictures / "photos", InputOptions(size=32, augment="imagenet"))
    assert not torch.equal(inputs.target.fetch([0], key=(0, 0)).images, inputs.target.fetch([0]).images)
    assert torch.equal(inputs.target.fetch([0]).images, inputs.target.with_augment("none").fetch([0]).images)


def test_fewer_large_images_are_measured_at_once(pictures):
    def read(size):
        return resolve(pictures / "catalogue", pictures / "photos", InputOptions(size=size))

    batches = {size: read(size).batches(read(size).source).batch_size for size in (16, 64, 128, 448)}
    assert batches == {16: 512, 64: 512, 128: 128, 448: 10}


@pytest.mark.parametrize("more", [{"size": 16}, {"target": "digits"}])
def test_what_is_read_already_takes_no_other_reading(more):
    inputs = resolve("mnist-5k", "digits", InputOptions(size=16))
    with pytest.raises(InvalidArgument, match="read already"):
        adapt("cs_lenet", inputs, **more)


@pytest.mark.slow
def test_at_224_pixels(pictures):
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    found = adapt(
        network,
        pictures / "catalogue",
        pictures / "photos",
        method="san",
        preprocessing=Preprocessing.from_model(network),
        steps=2,
        batch_size=4,
        hidden=(4,),
        reference=None,
        num_evals=1,
        device="cpu",
    )
    assert any("3 source classes where the network had 1000" in warning for warning in found.warnings)
    assert found.predictions.probabilities.shape == (9, 3)
