"""Generated code: torch.compile with its default back end gives the numbers of eager mode, forward and backward."""

import os
import shutil
import warnings

import pytest
import torch
from torch.testing import assert_close

from convsmith.pooling import ISQRTCOV, isqrt_covariance

COMPILER = os.environ.get("CXX") or next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="inductor compiles C++ on a CPU, and there is no C++ compiler here"),
]


def both(function, x):
    results = []
    for f in (function, torch.compile(function, fullgraph=True, backend="inductor")):
        leaf = x.clone().requires_grad_()
        out = f(leaf)
        out.square().sum().backward()
        results.append((out.detach(), leaf.grad))
    return results


@pytest.mark.parametrize("shape", [(2, 16, 3, 3), (2, 8, 6, 6)], ids=["positions", "channels"])
def test_isqrt_covariance_by_inductor(shape):
    with warnings.catch_warnings():
        # the cached functions inside would say so here
        warnings.filterwarnings("error", message=".*lru_cache.*")
        eager, compiled = both(isqrt_covariance, torch.randn(*shape))
    assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


def test_a_constant_sample_by_inductor_is_zero_with_a_zero_gradient():
    x = torch.randn(3, 6, 4, 4)
    x[1] = 0.3
    eager, compiled = both(isqrt_covariance, x)
    assert_close(compiled, eager, rtol=1e-5, atol=1e-5)
    assert compiled[0][1].abs().max() == 0
    assert compiled[1][1].abs().max() == 0


@pytest.mark.parametrize("method", ["newton-schulz", "polar-express"])
def test_the_layer_by_inductor(method):
    layer = ISQRTCOV(12, dim=8, iterations=5, method=method).double()
    eager, compiled = both(layer, torch.randn(4, 12, 3, 3, dtype=torch.float64))
    assert_close(compiled, eager, rtol=1e-9, atol=1e-9)
