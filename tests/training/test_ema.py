import pytest
import torch
from torch import nn

from convsmith.training.ema import WeightAverage, averaging_decay


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()


def test_follows_the_recurrence():
    net = module()
    net[0].bias.requires_grad_(False)
    average = WeightAverage(net, 0.9)
    names = [n for n, t in net.state_dict().items() if t.is_floating_point() and n != "0.bias"]
    assert sorted(average.names) == sorted(names)
    expected = {n: net.state_dict()[n].clone() for n in names}
    for step in range(30):
        with torch.no_grad():
            for t in net.state_dict().values():
                if t.is_floating_point():
                    t.add_(torch.randn_like(t))
        average.update(step)
        d = min(0.9, (1 + step) / (10 + step))
        expected = {n: d * expected[n] + (1 - d) * net.state_dict()[n] for n in names}
    for n in names:
        torch.testing.assert_close(average.state_dict()[n], expected[n], rtol=1e-12, atol=1e-12)


def test_applied_swaps_and_swaps_back_even_after_an_error():
    net = module()
    average = WeightAverage(net, 0.5)
    for tensor in average.average:
        tensor.add_(1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with average.applied():
        torch.testing.assert_close(net[0].weight.detach(), before["0.weight"] + 1, rtol=0, atol=0)
    with pytest.raises(RuntimeError), average.applied():
        raise RuntimeError
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    average.write_back()
    torch.testing.assert_close(net[0].weight.detach(), before["0.weight"] + 1, rtol=0, atol=0)


def test_decay_warms_up():
    assert averaging_decay(0.99, 0) == 0.1
    assert averaging_decay(0.99, 10**6) == 0.99
