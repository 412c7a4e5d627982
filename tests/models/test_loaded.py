"""A loaded network on its way to timm's files and the hub, and back."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from convsmith.errors import InvalidArgument
from convsmith.models import load_model
from convsmith.models.loaded import LoadedModel


@pytest.fixture
def loaded():
    found = load_model("cs_resnet20", num_classes=3)
    own = replace(found.preprocessing, input_size=(3, 40, 40), crop_pct=0.9)
    return replace(found, preprocessing=own, classes=("ant", "bee", "cat"))


def test_saved_for_timm_and_read_back(tmp_path, loaded):
    before = dict(loaded.model.pretrained_cfg)
    folder = loaded.save_pretrained(tmp_path / "net")
    found = LoadedModel.from_pretrained(folder)
    x = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found.model(x), loaded.model(x))
        assert torch.equal(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(x), loaded.model(x))
    assert found.classes == loaded.classes
    assert found.preprocessing == loaded.preprocessing
    assert dict(loaded.model.pretrained_cfg) == before


def test_what_goes_to_the_hub_is_timms_call(monkeypatch, loaded):
    sent = {}
    monkeypatch.setattr(timm.models, "push_to_hf_hub", lambda model, name, **rest: sent.update(rest, name=name))
    loaded.push_to_hub("me/net", private=True)
    assert (sent["name"], sent["private"], sent["model_config"]) == (
        "me/net",
        True,
        {"label_names": ["ant", "bee", "cat"]},
    )


def test_a_network_that_timm_cannot_build_is_refused(tmp_path, loaded):
    packed = replace(loaded, recipe=replace(loaded.recipe, compression=({"method": "low-rank"},)))
    with pytest.raises(InvalidArgument, match="does not build"):
        packed.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_arrays_are_no_images_and_the_hint_says_what_makes_them_one(loaded):
    for take in (loaded.transform, loaded.predict):
        with pytest.raises(InvalidArgument, match="fromarray") as refused:
            take([np.zeros((8, 8, 3), np.uint8)] if take == loaded.predict else np.zeros((8, 8, 3), np.uint8))
        assert str(refused.value).count("\n") == 3  # rule, argument, given, hint: one line each


def test_pixels_that_are_no_numbers_have_no_prediction(loaded):
    with pytest.raises(InvalidArgument, match="finite"):
        loaded.predict(torch.full((1, 3, 8, 8), torch.nan))
    with pytest.raises(InvalidArgument, match="name must be a text or Path"):
        LoadedModel.from_pretrained(None)
