import pytest
import torch

from convsmith.pooling import available
from convsmith.pooling.layers import GlobalAverage
from convsmith.testing import Nonconforming, check_pooling


@pytest.mark.parametrize("name", available())
def test_every_pooling_conforms(name):
    assert check_pooling(name).excepted == {}


def test_a_pooling_that_breaks_rules_is_told_all_of_them(monkeypatch):
    def pool(self, x):
        x.mul_(2)
        return (x.mean((2, 3)) + torch.rand(1) + x.mean()).float()

    monkeypatch.setattr(GlobalAverage, "pool", pool)
    with pytest.raises(Nonconforming) as caught:
        check_pooling("average")
    for rule in ("the dtype stays", "samples do not influence each other", "arguments are never changed"):
        assert rule in str(caught.value)
