"""The network that is adapted is the plain one inside its wrappers."""

import pytest
import torch
from torch import nn

from convsmith.adaptation import adapt
from tests.adaptation.worlds import network, world


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_are_taken_off(wrap):
    more = {"method": "san", "hidden": (4,), "reference": None, "steps": 4, "batch_size": 12, "device": "cpu"}
    plain, wrapped = (adapt(model, *world(), **more) for model in (network(norm=True), wrap(network(norm=True))))
    assert torch.equal(plain.predictions.probabilities, wrapped.predictions.probabilities)
