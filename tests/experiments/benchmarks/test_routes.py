"""The loop that stands for the published code finds what the library finds, so that times are of the same work."""

import torch

from convsmith.interpretation import find_routes
from experiments.benchmarks import peak_bytes
from experiments.benchmarks.routes import one_image, small_network


def test_the_loop_finds_the_same_gates():
    model = small_network().double().eval()
    x = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    routes = find_routes(model, x, mode="paper", steps=4, sites="conv")
    model.float()
    for row in range(2):
        gates = one_image(model, x[row : row + 1].float(), routes.layers, 4)
        torch.testing.assert_close(torch.cat(gates).double(), routes.vector()[row], atol=1e-3, rtol=0)
    assert all(not m._forward_hooks for m in model.modules())


def test_memory_is_linear_in_the_batch_and_independent_of_the_number_of_images():
    model = small_network().eval()
    x = torch.rand(16, 1, 12, 12)

    def peak(size, count):
        return peak_bytes(lambda: find_routes(model, x[:count], mode="paper", steps=2, sites="conv", batch_size=size))

    peak(2, 2)  # whatever the first call sets up
    two, four, eight = (peak(size, 16) for size in (2, 4, 8))
    assert abs(peak(2, 8) / two - 1) < 0.05
    assert abs((eight - four) / (four - two) - 2) < 0.2
