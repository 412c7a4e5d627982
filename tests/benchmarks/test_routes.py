"""The loop that stands for the published code finds what the library finds, so that times are of the same work."""

import torch

from convsmith.benchmarks.routes import one_image, small_network
from convsmith.interpretation import find_routes


def test_the_loop_finds_the_same_gates():
    model = small_network().double().eval()
    x = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    routes = find_routes(model, x, mode="paper", steps=4, sites="conv")
    model.float()
    for row in range(2):
        gates = one_image(model, x[row : row + 1].float(), routes.layers, 4)
        torch.testing.assert_close(torch.cat(gates).double(), routes.vector()[row], atol=1e-3, rtol=0)
    assert all(not m._forward_hooks for m in model.modules())
