"""What a search of routes cannot take is refused by name, before work."""

import copy

import pytest
import torch
from torch import nn

from convsmith.errors import InvalidArgument
from convsmith.interpretation import ablate, attack, find_routes, heat_map, overlay, score_units


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"mode": "convreged"}, "converged"),
        ({"gamma": -1.0}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"gamma_per": "max"}, "gamma_per"),
        ({"steps": 0}, "step"),
        ({"upper": 0.5}, "upper"),
        ({"init": "zeros"}, "init"),
        ({"precision": "int8"}, "precision"),
        ({"steps": 10**30}, "steps"),
        ({"gamma": torch.zeros(2, 3)}, "gamma"),
        ({"batch_size": 0}, "batch"),
        ({"sites": "convs"}, "conv"),
        ({"sites": "block"}, "shortcut"),
        ({"layers": ["99"]}, "layer"),
        ({"layers": []}, "layer"),
        ({"labels": torch.zeros(2)}, "labels"),
    ],
)
def test_bad_settings_are_refused_before_work(digits, settings, word):
    with pytest.raises(InvalidArgument, match=word):
        find_routes(digits.model, digits.test_x[:3], **settings)


@pytest.mark.parametrize(
    "images", [torch.zeros(0, 1, 8, 8), torch.full((2, 1, 8, 8), float("nan")), torch.zeros(2, 1, 8, 8).long(), None]
)
def test_bad_images_are_refused(digits, images):
    with pytest.raises(InvalidArgument):
        find_routes(digits.model, images)


def test_a_network_without_logits_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
    with pytest.raises(InvalidArgument, match="logits"):
        find_routes(model, torch.rand(2, 1, 8, 8), sites="conv")


def test_a_forward_that_cuts_the_gradient_is_refused(digits):
    class Cut(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x).detach()

    with pytest.raises(InvalidArgument, match="autograd"):
        find_routes(Cut(copy.deepcopy(digits.model)).eval(), digits.test_x[:2])


def test_a_network_that_asserts_the_size_of_its_images_is_refused(digits):
    class Sized(nn.Module):
        def forward(self, x):
            assert x.shape[-1] == 16, "images must be 16 pixels wide"
            return digits.model(x)

    with pytest.raises(InvalidArgument, match="16 pixels"):
        find_routes(Sized().eval(), digits.test_x[:2])


def test_labels_are_numbers_of_classes_wherever_they_are_given(digits):
    x, model = digits.test_x[:3], digits.model
    routes = find_routes(model, x, steps=2)
    calls = {
        "labels": [
            lambda y: attack(model, x, y, mean=[0.0], std=[1.0]),
            lambda y: ablate(model, x, y, routes, [0.1]),
        ],
        "target": [
            lambda y: score_units(model, x, "integrated", target=y),
            lambda y: heat_map(model, x, routes, target=y),
        ],
    }
    for name, given in calls.items():
        for call in given:
            for wrong in (
                torch.tensor([0, 1, 10]),
                torch.tensor([-1, 0, 1]),
                torch.tensor([0.5, 1, 2]),
                torch.arange(2),
            ):
                with pytest.raises(InvalidArgument) as refused:
                    call(wrong)
                assert refused.value.argument.startswith(name)
    with pytest.raises(InvalidArgument, match="whole number"):
        find_routes(model, x, labels=torch.tensor([0.5, 1.0, 2.0]), steps=2)


def test_a_change_of_more_than_all_of_a_pixel_is_refused(digits):
    with pytest.raises(InvalidArgument, match="at most 1"):
        attack(digits.model, digits.test_x[:1], digits.test_y[:1], epsilon=8)


def test_an_overlay_has_one_map_an_image():
    with pytest.raises(InvalidArgument, match="one map per image"):
        overlay(torch.rand(2, 3, 8, 8), torch.rand(3, 4, 4))
