"""The SAN loss against a loop over classes and images written from the formula, with every switch on its own."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.losses.selective import entropy, selective_adversarial_loss
from convsmith.adaptation.methods.method import method_settings
from convsmith.adaptation.methods.san import VARIANTS, SANVariant
from convsmith.adaptation.methods.weighting import ClassWeights, class_weights
from convsmith.errors import InvalidArgument

N_S, N_T, D, K = 5, 3, 4, 3  # unequal batches throughout


def scene(seed=0, k=K, hidden=(6,)):
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    bank = ClassDiscriminators(D, k, hidden, 0.0).double()
    with torch.no_grad():
        for p in bank.parameters():
            p.normal_(0, 0.6)
    f_s = torch.randn(N_S, D, generator=g, dtype=torch.float64, requires_grad=True)
    f_t = torch.randn(N_T, D, generator=g, dtype=torch.float64, requires_grad=True)
    z_s = torch.randn(N_S, k, generator=g, dtype=torch.float64, requires_grad=True)
    z_t = torch.randn(N_T, k, generator=g, dtype=torch.float64, requires_grad=True)
    w = torch.rand(k, generator=g, dtype=torch.float64) + 0.2
    return bank, f_s, f_t, z_s, z_t, w


def bce(logit, label):
    return F.softplus(logit) - label * logit


def oracle(bank, f_s, f_t, p_s, p_t, w, variant=None):
    """1/(n_s+n_t) sum_k w_k sum_i p_i^k BCE(G_k(f_i), d_i), one number at a time."""
    variant = variant or SANVariant()
    total = 0.0
    for k in range(bank.classes):
        net = bank.one(k)
        for domain, features, p in ((1, f_s, p_s), (0, f_t, p_t)):
            label = domain if variant.source_is == 1 else 1 - domain
            for i in range(len(features)):
                seen = features[i] * (p[i, k] if variant.instance_weight == "feature" else 1)
                term = bce(net(seen)[0], label)
                term = term * (p[i, k] if variant.instance_weight == "loss" else 1)
                total = total + term * (w[k] if variant.class_weight_on == "both" else 1)
    return total / (len(f_s) + len(f_t))


def switches(variant):
    """What the loss takes of a variant."""
    return {name: getattr(variant, name) for name in ("instance_weight", "class_weight_on", "source_is")}


READINGS = [
    SANVariant(instance_weight=instance, class_weight_on=on, source_is=source)
    for instance in ("loss", "feature", "none")
    for on in ("both", "features", "none")
    for source in (1, 0)
]


@pytest.mark.parametrize("variant", READINGS, ids=lambda f: f"{f.instance_weight}-{f.class_weight_on}-{f.source_is}")
def test_loss_equals_the_oracle_with_each_switch(variant):
    bank, f_s, f_t, z_s, z_t, w = scene()
    p_s, p_t = z_s.softmax(1), z_t.softmax(1)
    value = selective_adversarial_loss(f_s, f_t, p_s, p_t, w, bank, **switches(variant))
    assert_close(value, oracle(bank, f_s, f_t, p_s, p_t, w, variant), rtol=0, atol=1e-10)


def test_the_default_is_the_papers_loss_in_value_and_gradient():
    bank, f_s, f_t, z_s, z_t, w = scene(hidden=(6, 5))
    p_s, p_t = z_s.softmax(1).detach(), z_t.softmax(1).detach()
    ours = torch.autograd.grad(selective_adversarial_loss(f_s, f_t, p_s, p_t, w, bank), (f_s, f_t))
    theirs = torch.autograd.grad(oracle(bank, f_s, f_t, p_s, p_t, w), (f_s, f_t))
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=0, atol=1e-10)
    call = lambda a, b: selective_adversarial_loss(a, b, p_s, p_t, w, bank)  # noqa: E731
    assert torch.autograd.gradcheck(call, (f_s, f_t))


@pytest.mark.parametrize("variant", READINGS, ids=lambda f: f"{f.instance_weight}-{f.class_weight_on}-{f.source_is}")
def test_no_gradient_flows_through_probabilities_or_weights(variant):
    bank, f_s, f_t, z_s, z_t, w = scene()
    w.requires_grad_()
    loss = selective_adversarial_loss(
        f_s, f_t, z_s.softmax(1), z_t.softmax(1), w, bank, reversal=0.5, **switches(variant)
    )
    grads = torch.autograd.grad(loss, (z_s, z_t, w), allow_unused=True)
    assert all(g is None or bool((g == 0).all()) for g in grads)


def test_the_reversal_turns_the_feature_gradient_and_nothing_else():
    bank, f_s, f_t, z_s, z_t, w = scene()
    inputs = (f_s, f_t, *bank.parameters())
    args = (f_s, f_t, z_s.softmax(1), z_t.softmax(1), w, bank)
    plain = torch.autograd.grad(selective_adversarial_loss(*args), inputs)
    turned = torch.autograd.grad(selective_adversarial_loss(*args, reversal=0.3), inputs)
    for a, b in zip(plain[:2], turned[:2], strict=True):
        assert_close(b, -0.3 * a)
    for a, b in zip(plain[2:], turned[2:], strict=True):
        assert_close(a, b, rtol=0, atol=0)


def test_weights_on_the_features_alone_leave_the_discriminators_unweighted():
    bank, f_s, f_t, z_s, z_t, w = scene()
    args = (f_s, f_t, z_s.softmax(1), z_t.softmax(1))
    variant = SANVariant(class_weight_on="features")
    inputs = (f_s, *bank.parameters())
    got = torch.autograd.grad(selective_adversarial_loss(*args, w, bank, reversal=0.7, **switches(variant)), inputs)
    ones = torch.ones(K, dtype=torch.float64)
    unweighted = torch.autograd.grad(selective_adversarial_loss(*args, ones, bank), inputs)
    by_class = [
        torch.autograd.grad(selective_adversarial_loss(*args, torch.eye(K, dtype=torch.float64)[k], bank), f_s)[0]
        for k in range(K)
    ]
    assert_close(got[0], -0.7 * sum(w[k] * by_class[k] for k in range(K)))
    for a, b in zip(got[1:], unweighted[1:], strict=True):
        assert_close(a, b, rtol=0, atol=1e-15)


def test_one_class_is_dann():
    bank, f_s, f_t, *_ = scene(k=1)
    one_s, one_t, w = torch.ones(N_S, 1).double(), torch.ones(N_T, 1).double(), torch.ones(1).double()
    net = bank.one(0)
    dann = torch.cat([bce(net(f_s), 1), bce(net(f_t), 0)]).mean()
    assert_close(selective_adversarial_loss(f_s, f_t, one_s, one_t, w, bank), dann, rtol=0, atol=1e-12)


def test_uniform_predictions_and_unit_weights_are_the_mean_of_k_danns():
    bank, f_s, f_t, *_ = scene()
    uniform_s, uniform_t = (
        torch.full((N_S, K), 1 / K, dtype=torch.float64),
        torch.full((N_T, K), 1 / K, dtype=torch.float64),
    )
    danns = [torch.cat([bce(bank.one(k)(f_s), 1), bce(bank.one(k)(f_t), 0)]).mean() for k in range(K)]
    value = selective_adversarial_loss(f_s, f_t, uniform_s, uniform_t, torch.ones(K).double(), bank)
    assert_close(value, torch.stack(danns).mean(), rtol=0, atol=1e-12)


def test_a_class_of_weight_zero_receives_no_gradient_anywhere():
    bank, f_s, f_t, z_s, z_t, w = scene()
    w[1] = 0
    selective_adversarial_loss(f_s, f_t, z_s.softmax(1), z_t.softmax(1), w, bank).backward()
    assert bool((bank.first.weight.grad.view(K, -1, D)[1] == 0).all())
    assert bool((bank.first.bias.grad.view(K, -1)[1] == 0).all())
    for p in [*bank.weights, *bank.biases]:
        assert bool((p.grad[1] == 0).all())
        assert bool((p.grad[0] != 0).any())


def test_permuting_the_classes_permutes_the_weights_and_leaves_the_loss():
    bank, f_s, f_t, z_s, z_t, w = scene()
    order = torch.tensor([2, 0, 1])
    p_s, p_t = z_s.softmax(1), z_t.softmax(1)
    other = ClassDiscriminators(D, K, bank.hidden, 0.0).double()
    with torch.no_grad():
        for name in ("weight", "bias"):
            mine = getattr(bank.first, name).unflatten(0, (K, -1))[order].flatten(0, 1)
            getattr(other.first, name).copy_(mine)
        for a, b in zip([*other.weights, *other.biases], [*bank.weights, *bank.biases], strict=True):
            a.copy_(b[order])
    assert_close(class_weights(p_t[:, order]), class_weights(p_t)[order])
    first = selective_adversarial_loss(f_s, f_t, p_s, p_t, w, bank)
    second = selective_adversarial_loss(f_s, f_t, p_s[:, order], p_t[:, order], w[order], other)
    assert_close(first, second, rtol=0, atol=1e-12)


def test_entropy_is_log_k_when_uniform_and_zero_with_finite_gradient_when_one_hot():
    logits = torch.zeros(2, 7, dtype=torch.float64, requires_grad=True)
    assert_close(entropy(logits), torch.tensor(math.log(7), dtype=torch.float64))
    sure = torch.tensor([[1000.0, 0, 0]], dtype=torch.float64, requires_grad=True)
    value = entropy(sure)
    value.backward()
    assert_close(value, sure.new_tensor(0.0))
    assert bool(torch.isfinite(sure.grad).all())
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(entropy, (z,))


def numbers(values):
    return torch.tensor(values, dtype=torch.float64)


def test_variant_caffe_reproduces_its_column():
    """1 loss, 2 both, 3 running sum, 4 sums to K, 5 x10, 6 target ramped, 7 0.05, 8 0.1, 9 0."""
    variant = VARIANTS["caffe"]
    assert (variant.entropy, variant.adversarial, variant.weight_decay, variant.entropy_on, variant.entropy_ramp) == (
        0.05,
        0.1,
        0.0,
        "target",
        True,
    )
    weights = ClassWeights(2, variant.weights, 100).double()
    z_s, z_t = numbers([[0.0, 0.3]]), numbers([[0.2, 0.0], [0.0, 0.1]])
    p_t = weights.probabilities(z_t)
    # softmax of (2, 0) and (0, 1)
    a, b = math.e**2 / (math.e**2 + 1), 1 / (1 + math.e)
    assert_close(p_t, numbers([[a, 1 - a], [b, 1 - b]]))
    weights.take_batch(weights.probabilities(z_s), p_t, 0)
    assert_close(weights.weights, numbers([a + b, 2 - a - b]))
    weights.take_batch(weights.probabilities(z_s), p_t[:1], 1)
    assert_close(weights.weights, numbers([2 * a + b, 3 - 2 * a - b]) * 2 / 3)
    # a linear probe with weight 1 and 2 on one feature, by hand; source 0, target 1
    bank = ClassDiscriminators(1, 2, None).double()
    bank.first.weight.data.copy_(numbers([[1.0], [2.0]]))
    p_s = weights.probabilities(z_s)
    f_s, f_t, w = numbers([[0.5]]), numbers([[-1.0]]), weights.weights
    c = 1 / (1 + math.exp(3))
    expected = sum(
        float(w[k]) * (s * math.log1p(math.exp(0.5 * m)) + t * math.log1p(math.exp(1.0 * m)))
        for k, m, s, t in ((0, 1, c, a), (1, 2, 1 - c, 1 - a))
    )
    value = selective_adversarial_loss(f_s, f_t, p_s, p_t[:1], w, bank, **switches(variant))
    assert_close(float(value.detach()), expected / 2, rtol=0, atol=1e-12)


def test_variant_pytorch_reproduces_its_column():
    """1 feature, 2 features, 3 current batch of both, 4 max 1, 5 plain, 6 both unramped, 7 0.2, 8 1, 9 5e-4."""
    variant = VARIANTS["pytorch"]
    assert (variant.entropy, variant.adversarial, variant.weight_decay, variant.entropy_on, variant.entropy_ramp) == (
        0.2,
        1.0,
        5e-4,
        "both",
        False,
    )
    weights = ClassWeights(2, variant.weights, 100).double()
    p_s, p_t = numbers([[0.7, 0.3]]), numbers([[0.9, 0.1]])
    weights.take_batch(p_s, p_t, 0)
    assert_close(weights.weights, numbers([1.0, 0.25]))
    bank = ClassDiscriminators(1, 2, None).double()
    bank.first.weight.data.copy_(numbers([[1.0], [2.0]]))
    f_s, f_t = numbers([[0.5]]).requires_grad_(), numbers([[-1.0]])
    value = selective_adversarial_loss(f_s, f_t, p_s, p_t, weights.weights, bank, reversal=1.0, **switches(variant))
    soft = lambda v: math.log1p(math.exp(v))  # noqa: E731
    by_hand = soft(-0.35) + soft(-0.9) + soft(-0.3) + soft(-0.2)
    assert_close(float(value.detach()), by_hand / 2, rtol=0, atol=1e-12)
    value.backward()
    sig = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    gradient = 1.0 * (sig(0.35) - 1) * 0.7 * 1 + 0.25 * (sig(0.3) - 1) * 0.3 * 2
    assert_close(float(f_s.grad), -gradient / 2, rtol=0, atol=1e-12)
    # the discriminators themselves learn unweighted
    assert_close(float(bank.first.weight.grad[1]), ((sig(0.3) - 1) * 0.15 + sig(-0.2) * -0.1) / 2, rtol=0, atol=1e-12)


def test_every_variant_differs_from_the_paper_where_the_table_says():
    assert replace(VARIANTS["paper"]) == VARIANTS["paper"]
    assert {
        n: (p.instance_weight, p.class_weight_on, p.weights.estimate, p.weights.scale) for n, p in VARIANTS.items()
    } == {
        "paper": ("loss", "both", "target", "sum-one"),
        "caffe": ("loss", "both", "running-sum", "mean-one"),
        "pytorch": ("feature", "features", "batch", "max-one"),
    }
    with pytest.raises(InvalidArgument, match="did you mean 'caffe'"):
        method_settings("san", {"variant": "cafe"})


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"source_probabilities": torch.zeros(N_S, K + 1)}, "argument: source_probabilities"),
        ({"source_features": [[1.0] * D] * N_S}, "argument: source_features"),
        ({"target_features": torch.zeros(N_T, D + 1).double()}, "argument: target_features"),
        ({"target_probabilities": None}, "argument: target_probabilities"),
        ({"class_weights": torch.ones(K + 1)}, "argument: class_weights"),
        (
            {"source_features": torch.zeros(N_S, D + 1).double(), "target_features": torch.zeros(N_T, D + 1).double()},
            "argument: x",
        ),
    ],
)
def test_bad_input_is_one_clear_error(change, rule):
    bank, f_s, f_t, z_s, z_t, w = scene()
    args = {
        "source_features": f_s,
        "target_features": f_t,
        "source_probabilities": z_s.softmax(1),
        "target_probabilities": z_t.softmax(1),
        "class_weights": w,
        "discriminators": bank,
        **change,
    }
    with pytest.raises(InvalidArgument, match=rule):
        selective_adversarial_loss(**args)
    with pytest.raises(InvalidArgument, match="argument: instance_weight"):
        SANVariant(instance_weight="both")
