"""Pieces cover a batch evenly, and chains run in pieces give the definition's numbers in memory used again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convsmith.compression import InterleavedGroupConv2d, InterleavedStructuredConv2d
from convsmith.compression.operators import buffers, onednn, pieces
from convsmith.errors import InvalidArgument

CHAINS = {
    "pair": lambda **k: InterleavedGroupConv2d(4, 3, 1, **k),
    "spatial pair": lambda **k: InterleavedGroupConv2d(4, 3, (3, 2), 2, **k),
    "widening pair": lambda **k: InterleavedGroupConv2d(4, 2, 3, out_primary=3, out_members=4, **k),
    "merged secondary": lambda **k: InterleavedGroupConv2d(4, 2, 1, out_members=4, secondary_groups=2, **k),
    "one digit": lambda **k: InterleavedStructuredConv2d((6,), 3, **k),
    "three digits": lambda **k: InterleavedStructuredConv2d((2, 3, 2), 1, **k),
    "depthwise and three": lambda **k: InterleavedStructuredConv2d((1, 2, 3, 2), 3, out_partitions=(1, 3, 2, 2), **k),
    "loose": lambda **k: InterleavedStructuredConv2d((4, 4), 1, channels=12, out_channels=24, **k),
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("batch", [1, 5])
def test_against_the_definition(name, batch, dtype, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1)  # pieces of 2, 2 and 1 images
    layer = CHAINS[name](dtype=dtype, backend="group")
    x = torch.randn(batch, layer.in_channels, 6, 5, dtype=dtype)
    with torch.no_grad():
        expected = layer(x)
        layer.backend = "matmul-pieces"
        y = layer(x)
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


def test_weights_are_followed_and_results_are_not_overwritten():
    layer = InterleavedGroupConv2d(8, 8, 1, backend="matmul-pieces").requires_grad_(False)
    x = torch.randn(4, 64, 32, 32)  # a megabyte: its result lies in memory used again
    buffers.release()
    first = layer(x)
    copy = first.clone()
    layer.weights[0].mul_(2)
    second = layer(x)
    torch.testing.assert_close(first, copy, rtol=0, atol=0)
    torch.testing.assert_close(second, 2 * copy, rtol=1e-5, atol=1e-5)
    kept = buffers.kept_bytes()
    assert kept >= 2 << 20
    del second
    layer(x)
    assert buffers.kept_bytes() == kept


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda layer, x: layer(x.requires_grad_()), "gradient"),
        (lambda layer, x: layer(x.contiguous(memory_format=torch.channels_last)), "channels first"),
        (lambda layer, x: layer(x.double()), "float64"),
        (lambda layer, x: layer(x[:0]), "no images"),
    ],
)
def test_what_cannot_run_says_why(make, why):
    layer = InterleavedGroupConv2d(4, 2, 1, backend="matmul-pieces").requires_grad_(False)
    with pytest.raises(InvalidArgument, match=why):
        make(layer, torch.randn(2, 8, 3, 3))


def test_tracing_and_autocast_are_named():
    layer = InterleavedGroupConv2d(4, 2, 1).requires_grad_(False)
    x = torch.randn(2, 8, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert pieces.matmul_obstacle(x, list(layer.weights)) == "autocast"
    assert pieces.matmul_obstacle(x.to("meta"), list(layer.weights)) is not None
    assert pieces.matmul_obstacle(x, list(layer.weights)) is None
    assert onednn.is_traced(x.to("meta"))


@given(st.integers(1, 200), st.integers(1, 8 << 20), st.integers(1, 6))
def test_pieces_cover_the_batch_evenly(batch, image, threads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        step = pieces.piece_size(batch, image)
        assert 1 <= step <= batch
        assert step == batch or step % threads == 0
        # no thread works on more than fits, unless a single image is larger
        assert -(-step // threads) * image <= max(pieces.PIECE_BYTES, image)
