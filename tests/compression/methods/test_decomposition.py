"""Low-rank chains against their definitions."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convsmith.compression import compress, plan_compression
from convsmith.compression.cost import cost
from convsmith.compression.methods.decomposition import (
    DECOMPOSITIONS,
    Outputs,
    counts,
    factor,
    full_rank,
    skeleton,
    spectrum,
)
from convsmith.errors import InvalidArgument
from convsmith.inspection.trace import trace_layers

LAYERS = [
    nn.Conv2d(6, 8, 3, padding=1),
    nn.Conv2d(6, 8, 3, stride=2, padding=(1, 0), dilation=(1, 2), bias=False),
    nn.Conv2d(6, 9, (3, 5), padding="same", groups=3),
    nn.Conv2d(6, 6, 3, padding=1, groups=6, padding_mode="reflect"),
    nn.Conv2d(5, 7, 1),
    nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
    nn.Linear(7, 5),
]
CASES = [
    (layer, decomposition) for layer in LAYERS for decomposition in DECOMPOSITIONS if full_rank(layer, decomposition)
]


def images(layer):
    return (
        torch.randn(2, 1, 1, 7, dtype=torch.float64)
        if isinstance(layer, nn.Linear)
        else torch.randn(2, layer.in_channels, 9, 8, dtype=torch.float64)
    )


@pytest.mark.parametrize(("layer", "decomposition"), CASES, ids=lambda v: str(v))
def test_full_rank_is_exact(layer, decomposition):
    layer = copy.deepcopy(layer).double()
    if decomposition == "interpolative":  # its full rank is one less than the matrix's
        with torch.no_grad():
            layer.weight.copy_(composite(factor(layer, "svd", full_rank(layer, decomposition))))
    x = images(layer)
    chain = factor(layer, decomposition, full_rank(layer, decomposition))
    torch.testing.assert_close(chain(x), layer(x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("layer", "decomposition"), CASES, ids=lambda v: str(v))
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_counts_are_those_of_the_chain(layer, decomposition, share):
    layer = layer.double()
    rank = max(1, round(share * full_rank(layer, decomposition)))
    x = images(layer)
    chain = factor(layer, decomposition, rank)
    counted = cost(chain, tuple(x.shape))
    (traced,) = trace_layers(nn.Sequential(layer), x).layers
    macs, params = counts(traced, decomposition, rank)
    assert (macs * len(x), params) == (counted.macs, counted.params)
    assert sum(p.numel() for p in chain.parameters()) == params


def composite(chain):
    """The dense kernel of a chain of two convolutions, by definition: sum over the middle channels."""
    first, second = (layer.weight.double() for layer in chain)
    return torch.einsum("ormn,rihw->oihw", second, first) if second.shape[-1] == 1 else None


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_svd_error_is_the_discarded_energy(c_in, c_out, k, seed):
    torch.manual_seed(seed)
    layer = nn.Conv2d(c_in, c_out, k, bias=False).double()
    values = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    for rank in range(1, full_rank(layer, "svd") + 1):
        error = (composite(factor(layer, "svd", rank)) - layer.weight).square().sum()
        torch.testing.assert_close(error, values[rank:].square().sum(), rtol=1e-8, atol=1e-12)
        kept = spectrum(layer, "svd")[rank - 1]
        torch.testing.assert_close(1 - kept, values[rank:].square().sum() / values.square().sum(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sizes", [(4, 11, 1), (11, 4, 1), (5, 9, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_interpolative_computes_what_svd_does_with_fewer_numbers(sizes, bias):
    torch.manual_seed(3)
    layer = nn.Conv2d(*sizes, padding=sizes[2] // 2, bias=bias).double()
    layer.weight.requires_grad_(False)
    x = torch.randn(2, sizes[0], 6, 5, dtype=torch.float64)
    for rank in range(1, min(sizes[:2])):
        chain, wanted = factor(layer, "interpolative", rank), factor(layer, "svd", rank)
        torch.testing.assert_close(chain(x), wanted(x), rtol=1e-9, atol=1e-10)
        saved = sum(p.numel() for p in wanted.parameters()) - sum(p.numel() for p in chain.parameters())
        assert saved == rank**2
        assert sorted(chain.order.tolist()) == list(range(len(chain.order)))
        assert [name for name, p in chain.named_parameters() if p.requires_grad] == [
            name for name, _ in chain.named_parameters() if name.endswith("bias")
        ]
        assert max(float(p.detach().abs().max()) for p in chain.parameters()) < 1e3
        empty = skeleton(layer, "interpolative", rank)
        empty.load_state_dict(chain.state_dict())
        assert torch.equal(empty(x), chain(x))


def test_spatial_error_is_the_discarded_energy():
    layer = nn.Conv2d(4, 5, 3, bias=False).double()
    matrix = torch.stack([layer.weight[:, i, h, :].reshape(-1) for i in range(4) for h in range(3)])
    values = torch.linalg.svdvals(matrix)
    for rank in (1, 4, 9):
        tall, wide = (part.weight for part in factor(layer, "spatial", rank))
        whole = torch.einsum("riha,orbw->oihw", tall, wide)
        torch.testing.assert_close(
            (whole - layer.weight).square().sum(), values[rank:].square().sum(), rtol=1e-8, atol=0
        )


def test_tucker_is_within_its_bound():
    layer = nn.Conv2d(8, 8, 3, bias=False).double()
    for rank in (2, 4, 6):
        inner, core, outer = (
            part.weight.flatten(2).squeeze(-1) if part.weight.shape[-1] == 1 else part.weight
            for part in factor(layer, "tucker", rank)
        )
        whole = torch.einsum("oa,abhw,bi->oihw", outer, core, inner)
        error = (whole - layer.weight).square().sum() / layer.weight.square().sum()
        assert error <= 1 - spectrum(layer, "tucker")[rank - 1] + 1e-12


def test_with_outputs_the_basis_is_the_best_for_these_images():
    torch.manual_seed(1)
    layer = nn.Linear(6, 6).double()
    x = torch.randn(200, 6, dtype=torch.float64) * torch.tensor([9.0, 5, 1, 0.1, 0.1, 0.1], dtype=torch.float64) + 3
    y = layer(x) - layer.bias
    moments = Outputs(y.mean(0).detach(), torch.cov(y.T.detach(), correction=0))
    for rank in (1, 2, 3):
        aware, blind = factor(layer, "svd", rank, moments), factor(layer, "svd", rank)
        error = [(chain(x) - layer(x)).square().mean() for chain in (aware, blind)]
        best = torch.linalg.eigvalsh(moments.covariance)[: 6 - rank].sum() / 6
        torch.testing.assert_close(error[0], best, rtol=1e-6, atol=1e-9)
        assert error[0] <= error[1] + 1e-12


def test_zero_kernel_and_bad_ranks():
    layer = nn.Conv2d(3, 3, 3, padding=1)
    nn.init.zeros_(layer.weight)
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(factor(layer, "svd", 1)(x), layer(x))
    assert spectrum(layer, "svd").tolist() == [1, 1, 1]
    for decomposition, rank in [("svd", 0), ("svd", 4), ("spatial", 99), ("nonsense", 1)]:
        with pytest.raises(InvalidArgument, match="full rank"):
            factor(layer, decomposition, rank)
    torch.testing.assert_close(factor(layer, "interpolative", 1)(x), layer(x))
    with pytest.raises(InvalidArgument, match="decompositions: svd"):
        factor(nn.Linear(3, 3), "tucker", 1)


class Windows(nn.Module):
    """A layer on four windows of every image: its batch is not the images'."""

    def __init__(self):
        super().__init__()
        self.patches, self.inner, self.head = nn.Conv2d(3, 24, 1), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x):
        x = self.patches(x).reshape(len(x), 24, 2, 2, 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 24)
        return self.head(self.inner(x).reshape(-1, 16, 24).mean(1))


def test_a_transposed_layer_takes_an_output_size():
    layer = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1).double()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    for made in (factor(layer, "svd", 6), torch.jit.script(factor(layer, "svd", 6))):
        torch.testing.assert_close(made(x, output_size=[10, 7]), layer(x, output_size=[10, 7]))


def test_layers_on_windows_meet_the_budget():
    torch.manual_seed(0)
    model, images = Windows().eval(), torch.randn(4, 3, 4, 4)
    plan = plan_compression(model, "low-rank", example=images, keep_macs=0.7)
    made = compress(model, "low-rank", example=images, plan=plan)
    kept = cost(made, (3, 4, 4)).macs / cost(model, (3, 4, 4)).macs
    assert kept == plan.kept("macs")
    assert 0.63 <= kept <= 0.7  # a rank of 24 + 24 weights is four of a hundred
