"""BA3US against its formulas written out image by image."""

import math

import torch
from torch.testing import assert_close

from convsmith.adaptation.losses.adversarial import domain_loss
from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.methods.ba3us import balanced_weights, complement_loss


def test_complement_entropy_divides_by_the_summed_errors():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(6, 4, generator=g, dtype=torch.float64)
    y, w = torch.tensor([0, 3, 1, 2, 0, 1]), torch.rand(6, generator=g, dtype=torch.float64)
    top = bottom = 0.0
    for row, label, weight in zip(z.softmax(1).tolist(), y.tolist(), w.tolist(), strict=True):
        wrong = 1 - row[label]
        q = [p / wrong for k, p in enumerate(row) if k != label]
        top += weight * wrong * sum(v * math.log(v) for v in q) / math.log(3)
        bottom += weight * wrong
    assert_close(float(complement_loss(z, y, w)), top / bottom, rtol=0, atol=1e-12)
    # sum w (1 - p) is neither n nor sum w: the mean of either kind would be smaller
    assert abs(top / bottom) > abs(top) / float(w.sum())


def test_complement_entropy_of_certain_images_has_a_finite_gradient():
    z = torch.tensor([[200.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    value = complement_loss(z, torch.tensor([0, 1]), torch.ones(2))
    value.backward()
    assert_close(value.detach(), torch.tensor(-1.0))  # the second image's other classes are uniform
    assert bool(torch.isfinite(z.grad).all())
    assert float(complement_loss(torch.randn(3, 2), torch.tensor([0, 1, 1]), torch.ones(3))) == 0.0


def test_borrowed_images_carry_their_class_weight_and_the_sources_normalisation():
    torch.manual_seed(0)
    n, lent = 4, 2
    bank = ClassDiscriminators(3, 1, (5,), 0.0).double()
    f_s, f_t = torch.randn(n, 3).double(), torch.randn(n, 3).double()
    raw_s, raw_t = torch.rand(n).double() + 0.1, torch.rand(n).double() + 1
    own, others = balanced_weights(raw_s, raw_t, lent)
    value = domain_loss(
        f_s, torch.cat([f_t, f_s[:lent]]), bank, source_weights=own * n, target_weights=others * (n + lent)
    )
    # the authors' arrangement: source, target, borrowed in one vector, source and borrowed share one normalisation
    net = bank.one(0)
    logits = [float(net(f)) for f in torch.cat([f_s, f_t, f_s[:lent]])]
    source = [*raw_s.tolist(), *[0.0] * n, *raw_s[:lent].tolist()]
    target = [*[0.0] * n, *raw_t.tolist(), *[0.0] * lent]
    weights = [(1 + lent / n) * a / sum(source) + b / sum(target) for a, b in zip(source, target, strict=True)]
    losses = [math.log1p(math.exp(-z if i < n else z)) for i, z in enumerate(logits)]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert_close(float(value), expected, rtol=0, atol=1e-12)
    assert_close(own.sum() + others.sum(), own.new_tensor(1.0))
