"""MobileNetV1 at its four published widths, against timm's, and the Xception control."""

import pytest
import timm
import torch

import convsmith  # noqa: F401  (registers our models)
from convsmith.compression import InterleavedGroupConv2d, cost
from convsmith.errors import InvalidArgument
from convsmith.models.lean_controls import mobilenet_v1_net, scaled, xception_igc_net


@pytest.mark.parametrize(
    ("name", "params", "mega"),
    [
        ("cs_mobilenetv1_100", 4_231_976, 568.74),
        ("cs_mobilenetv1_075", 2_585_560, 325.40),
        ("cs_mobilenetv1_050", 1_331_592, 149.50),
        ("cs_mobilenetv1_025", 470_072, 41.03),
    ],
)
def test_published_counts(name, params, mega):
    with torch.device("meta"):
        result = cost(timm.create_model(name), (3, 224, 224))
    assert result.params == params
    assert round(result.macs / 1e6, 2) == mega


def test_the_plan_is_timms():
    with torch.device("meta"):
        ours = cost(timm.create_model("cs_mobilenetv1_100"), (3, 224, 224))
        theirs = cost(timm.create_model("mobilenetv1_100"), (3, 224, 224))
    assert (ours.params, ours.macs, ours.activations) == (theirs.params, theirs.macs, theirs.activations)


@pytest.mark.parametrize(
    ("name", "params"),
    [("cs_mobilenetv1_small", 69_098), ("xception_igc_d20", 159_750), ("xception_igc_small", 132_410)],
)
def test_small_networks(name, params):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == params
    assert f"{params:,}" in timm.model_entrypoint(name).__doc__


def test_every_xception_unit_has_one_member_a_partition():
    chains = [m for m in xception_igc_net(8, 6).modules() if isinstance(m, InterleavedGroupConv2d)]
    assert len(chains) == 6
    assert all(chain.members == 1 for chain in chains)


def test_widths_are_multiples_and_bad_arguments_are_named():
    assert [scaled(32, w) for w in (1.0, 0.75, 0.3, 0.01)] == [32, 24, 8, 8]
    with pytest.raises(InvalidArgument, match="width must be a finite number above 0"):
        mobilenet_v1_net(0)
    with pytest.raises(InvalidArgument, match="8 or 11"):
        xception_igc_net(9)
