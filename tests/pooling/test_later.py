import math

import torch
from torch import nn
from torch.testing import assert_close

from convsmith.pooling import BDC, DropCov, brownian_covariance, covariance, triu_vector
from convsmith.pooling.later import drop_rate

D = torch.float64


def test_brownian_covariance_entry_by_entry():
    x = torch.randn(2, 4, 7, dtype=D)
    for ours, s in zip(brownian_covariance(x), x, strict=True):
        d = torch.empty(4, 4, dtype=D)
        for i in range(4):
            for j in range(4):
                d[i, j] = math.sqrt(float((s[i] - s[j]).square().sum()) / 14 + 1e-5)
        expected = d - d.mean(0, keepdim=True) - d.mean(1, keepdim=True) + d.mean()
        assert_close(ours, expected, rtol=1e-10, atol=1e-11)
        assert_close(ours.sum(1), torch.zeros(4, dtype=D), rtol=0, atol=1e-12)


def test_the_scale_of_bdc_is_learned():
    layer = BDC(4)
    layer(torch.randn(2, 4, 7)).square().sum().backward()
    assert layer.log_scale.grad.abs() > 0
    x = torch.randn(2, 4, 7, dtype=D)
    assert_close(
        brownian_covariance(x, torch.tensor(math.log(4.0), dtype=D), ridge=0.0), 2 * brownian_covariance(x, ridge=0.0)
    )


def test_dropcov_rate_step_by_step():
    x = torch.randn(3, 16, 10, dtype=D)
    cosines = []
    for s in x:
        y = torch.sigmoid(s.mean(1))
        c = torch.cov(s, correction=0).sum(1)
        cosines.append(float(y @ c / y.norm() / c.norm()))
    expected = min(max(1 - 10 / math.log2(16) * sum(cosines) / 3, 0), 1)
    assert math.isclose(float(drop_rate(x)), expected, rel_tol=1e-10)


def test_dropcov_drops_channels_in_training_and_nothing_in_inference():
    layer = DropCov(64)
    x = torch.randn(4, 64, 30).relu() * torch.linspace(0, 2.0, 64).exp().square()[:, None]
    layer.eval()
    assert torch.equal(layer(x), triu_vector(covariance(x)))
    layer.train()
    rate = float(drop_rate(x))
    assert 0.2 < rate < 1.0
    out = layer(x)
    dropped = (out == 0).float().mean()
    # an entry survives when both of its channels do
    assert dropped > 0.2
    assert out.isfinite().all()


def test_parameters_of_the_published_dropcov_resnet50():
    """2048 -> 128 reduction and 8,256 x 1000 classifier on ResNet-50's 23,508,032 backbone parameters: 32,027,432."""
    layer = DropCov(2048, 128)
    head = nn.Linear(layer.out_features, 1000)
    count = sum(p.numel() for p in [*layer.parameters(), *head.parameters()])
    assert 23_508_032 + count == 32_027_432
