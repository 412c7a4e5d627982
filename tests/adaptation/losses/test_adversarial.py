"""The weighted domain loss against the papers' formula, image by image, and what its gradient does."""

import math

import pytest
import torch
from torch.testing import assert_close

from convsmith.adaptation.losses.adversarial import certainty, domain_loss, fooling_loss
from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.errors import InvalidArgument

N_S, N_T, D = 5, 3, 4  # unequal: a divisor for both would show


def scene():
    torch.manual_seed(2)
    bank = ClassDiscriminators(D, 1, (6,), 0.0).double()
    with torch.no_grad():
        for p in bank.parameters():
            p.normal_(0, 0.6)
    f_s = torch.randn(N_S, D, dtype=torch.float64, requires_grad=True)
    f_t = torch.randn(N_T, D, dtype=torch.float64, requires_grad=True)
    return bank, f_s, f_t


def by_hand(net, f_s, f_t, w_s, w_t):
    soft = lambda z: math.log1p(math.exp(z))  # noqa: E731
    source = sum(float(w) * soft(-float(net(f.detach()))) for f, w in zip(f_s, w_s, strict=True)) / len(f_s)
    return source + sum(float(w) * soft(float(net(f.detach()))) for f, w in zip(f_t, w_t, strict=True)) / len(f_t)


def test_each_domain_is_divided_by_its_own_number_of_images():
    bank, f_s, f_t = scene()
    value = domain_loss(f_s, f_t, bank)
    assert_close(float(value), by_hand(bank.one(0), f_s, f_t, [1] * N_S, [1] * N_T), rtol=0, atol=1e-12)
    w_s, w_t = torch.rand(N_S).double(), torch.rand(N_T).double()
    weighted = domain_loss(f_s, f_t, bank, source_weights=w_s, target_weights=w_t)
    assert_close(float(weighted), by_hand(bank.one(0), f_s, f_t, w_s, w_t), rtol=0, atol=1e-12)
    # twice the images of one side, each twice: nothing changes
    assert_close(domain_loss(torch.cat([f_s, f_s]), f_t, bank), value)


def test_gradients_with_and_without_reversal():
    bank, f_s, f_t = scene()
    assert torch.autograd.gradcheck(lambda a, b: domain_loss(a, b, bank), (f_s, f_t))
    inputs = (f_s, f_t, *bank.parameters())
    plain = torch.autograd.grad(domain_loss(f_s, f_t, bank), inputs)
    turned = torch.autograd.grad(domain_loss(f_s, f_t, bank, reversal=0.3), inputs)
    for n, (a, b) in enumerate(zip(plain, turned, strict=True)):
        assert_close(b, -0.3 * a if n < 2 else a)


def test_the_fooling_loss_leaves_the_discriminator_alone():
    bank, _, f_t = scene()
    net, value = bank.one(0), fooling_loss(f_t, bank)
    expected = sum(math.log1p(math.exp(-float(net(f.detach())))) for f in f_t) / N_T
    assert_close(float(value), expected, rtol=0, atol=1e-12)
    value.backward()
    assert all(p.grad is None for p in bank.parameters())
    assert bool((f_t.grad != 0).any())


def test_certainty_is_two_for_one_class_and_one_plus_a_kth_for_all():
    logits = torch.tensor([[1000.0, 0.0, 0.0], [2.0, 2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    assert_close(certainty(logits), torch.tensor([2.0, 1 + 1 / 3], dtype=torch.float64))
    assert not certainty(logits).requires_grad


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"source_features": "x"}, "source_features"),
        ({"target_features": torch.zeros(N_T, D + 1).double()}, "target_features"),
        ({"source_weights": torch.ones(N_T)}, "source_weights"),
        ({"target_weights": [1.0] * N_T}, "target_weights"),
    ],
)
def test_bad_input_is_one_clear_error(change, name):
    bank, f_s, f_t = scene()
    args = {"source_features": f_s, "target_features": f_t, "discriminator": bank, **change}
    with pytest.raises(InvalidArgument, match=f"argument: {name}"):
        domain_loss(**args)
