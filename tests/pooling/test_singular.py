import pytest
import torch
from torch.testing import assert_close

from convsmith.pooling.singular import singular

D = torch.float64


def graded(rows, n, condition, dtype=D):
    s = min(rows, n)
    u = torch.linalg.qr(torch.randn(2, rows, s, dtype=D))[0]
    v = torch.linalg.qr(torch.randn(2, n, s, dtype=D))[0]
    values = torch.logspace(0, -torch.log10(torch.tensor(condition, dtype=D)).item(), s, dtype=D)
    return ((u * values) @ v.mT).to(dtype), values.flip(0)


@pytest.mark.parametrize("shape", [(12, 12), (30, 12), (12, 13), (200, 140)])
@pytest.mark.parametrize(("dtype", "condition", "gain"), [(D, 1e6, 30), (torch.float32, 200.0, 2)])
def test_small_singular_values_are_right_to_rounding_of_the_largest(shape, dtype, condition, gain):
    y, values = graded(*shape, condition, dtype)
    found = singular(y)
    roots = found.squares.sqrt()[:, -len(values) :].to(D)
    eps = torch.finfo(dtype).eps
    assert_close(roots, values.expand_as(roots), rtol=0, atol=16 * eps)
    # the eigenproblem alone knows the square of the smallest to eps only
    alone = torch.linalg.eigvalsh(y.mT @ y)[:, -len(values) :].clamp(min=0).sqrt().to(D)
    assert (alone - values).abs().max() > gain * (roots - values).abs().max()


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7)])
def test_what_is_returned_is_a_decomposition(shape):
    y = torch.randn(3, *shape, dtype=D)
    y[1, :, -2:] = y[1, :, :2]
    y[2] = 0
    squares, v, w = singular(y)
    eye = torch.eye(shape[1], dtype=D).expand(3, -1, -1)
    assert_close(v.mT @ v, eye, rtol=0, atol=1e-14)
    assert_close(w @ v.mT, y, rtol=0, atol=1e-13)
    assert_close(w.mT @ w, torch.diag_embed(squares), rtol=0, atol=1e-13)
    assert (squares[2] == 0).all()
    assert ((squares > 0).sum(1)[:2] == torch.linalg.matrix_rank(y[:2])).all()


def test_equal_singular_values_are_harmless():
    q = torch.linalg.qr(torch.randn(1, 20, 8, dtype=D))[0]
    squares, v, w = singular(q * 3)
    assert_close(squares, torch.full_like(squares, 9.0), rtol=1e-14, atol=0)
    assert_close(w @ v.mT, q * 3, rtol=0, atol=1e-13)


def test_large_batches_on_several_threads():
    # batched LU breaks down here in torch 2.14, so nothing on this path may use it
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        y = torch.randn(8, 200, 160, dtype=D, generator=torch.Generator().manual_seed(0))
        found = singular(y)
    finally:
        torch.set_num_threads(before)
    assert_close(found.vectors @ found.vectors.mT, torch.eye(160, dtype=D).expand(8, -1, -1), rtol=0, atol=1e-13)
    assert_close(found.images @ found.vectors.mT, y, rtol=0, atol=1e-12)
