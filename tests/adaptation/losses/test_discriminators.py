"""The batched bank against a loop over K ordinary networks."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from convsmith.adaptation.losses.discriminators import ClassDiscriminators, keep_mask
from convsmith.errors import InvalidArgument


def bank(d=5, k=3, hidden=(7, 4), dropout=0.0, dtype=torch.float64):
    torch.manual_seed(1)
    made = ClassDiscriminators(d, k, hidden, dropout).to(dtype)
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(0, 0.5)
    return made


@given(d=st.integers(1, 6), k=st.integers(1, 5), b=st.integers(1, 6), layers=st.integers(0, 3))
def test_the_bank_equals_a_loop_in_value_and_every_gradient(d, k, b, layers):
    made = bank(d, k, (4, 3, 5)[:layers])
    x = torch.randn(b, d, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(b, k, dtype=torch.float64)
    logits = made(x)
    loop = [made.one(i) for i in range(k)]
    x2 = x.detach().clone().requires_grad_()
    expected = torch.cat([net(x2) for net in loop], dim=1)
    assert_close(logits, expected, rtol=0, atol=1e-12)
    (logits * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert_close(x.grad, x2.grad, rtol=0, atol=1e-12)
    h = made.hidden[0] if layers else 1
    for i, net in enumerate(loop):
        linears = [m for m in net if isinstance(m, torch.nn.Linear)]
        assert_close(made.first.weight.grad[i * h : (i + 1) * h], linears[0].weight.grad, rtol=0, atol=1e-12)
        assert_close(made.first.bias.grad[i * h : (i + 1) * h], linears[0].bias.grad, rtol=0, atol=1e-12)
        for weight, bias, linear in zip(made.weights, made.biases, linears[1:], strict=True):
            assert_close(weight.grad[i], linear.weight.grad, rtol=0, atol=1e-12)
            assert_close(bias.grad[i], linear.bias.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("hidden", [None, (6,), (6, 4)])
@pytest.mark.parametrize("instance", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_hand_written_backward_pass_passes_gradcheck_and_equals_plain_operators(hidden, instance, scaled):
    made = bank(hidden=hidden)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    extra = {}
    if instance:
        extra["instance"] = torch.rand(4, 3, dtype=torch.float64)
    if not scaled:
        assert torch.autograd.gradcheck(lambda a, *_: made(a, **extra), (x, *made.parameters()))
    if scaled:
        extra["gradient_scale"] = torch.tensor([-0.5, 0.0, 2.0], dtype=torch.float64)
    upstream = torch.randn(4, 3, dtype=torch.float64)
    inputs = [x, *made.parameters()]
    fused = torch.autograd.grad((made(x, **extra) * upstream).sum(), inputs)
    plain = made._plain(x, extra.get("instance"), extra.get("gradient_scale"), 1.0, [x.new_empty(0)] * len(made.hidden))
    for a, b in zip(fused, torch.autograd.grad((plain * upstream).sum(), inputs), strict=True):
        assert_close(a, b, rtol=0, atol=1e-12)


def test_dropout_of_both_paths_is_the_same_for_the_same_masks():
    made = bank(hidden=(16, 8), dropout=0.5)
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    logits = made(x)
    fused = torch.autograd.grad(logits.sum(), [x, *made.parameters()])
    torch.manual_seed(3)
    first = keep_mask((6, 3, 16), 0.5, x.device).transpose(0, 1)
    masks = [first, keep_mask((3, 6, 8), 0.5, x.device)]
    plain = made._plain(x, None, None, 0.5, masks)
    assert_close(logits, plain, rtol=0, atol=1e-12)
    for a, b in zip(fused, torch.autograd.grad(plain.sum(), [x, *made.parameters()]), strict=True):
        assert_close(a, b, rtol=0, atol=1e-12)


def test_gradient_scale_changes_the_input_gradient_alone():
    made = bank()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([-1.0, 0.0, 3.0], dtype=torch.float64)
    plain = torch.autograd.grad(made(x).sum(), [x, *made.parameters()])
    scaled = torch.autograd.grad(made(x, gradient_scale=scale).sum(), [x, *made.parameters()])
    by_class = [torch.autograd.grad(made(x)[:, k].sum(), x)[0] for k in range(3)]
    assert_close(scaled[0], sum(s * g for s, g in zip(scale, by_class, strict=True)))
    for a, b in zip(plain[1:], scaled[1:], strict=True):
        assert_close(a, b, rtol=0, atol=0)


def test_masks_keep_the_right_share_and_differ_by_image_and_discriminator():
    for dropout in (0.1, 0.5, 0.9):
        mask = keep_mask((10, 50, 101), dropout, torch.device("cpu")).float()
        assert abs(float(mask.mean()) - (1 - dropout)) < 4 * 0.5 / mask.numel() ** 0.5
    assert len({tuple(row.flatten().tolist()) for row in mask}) == 10
    made = bank(hidden=(32,), dropout=0.5)
    x = torch.randn(1, 5, dtype=torch.float64).expand(64, 5)
    out = torch.stack([made(x) for _ in range(30)]).flatten(0, 1)
    assert len(torch.unique(out[:, 0])) > 60
    assert_close(out.mean(0), made.eval()(x)[0], rtol=0.1, atol=0.15)  # dropout keeps the expectation


def test_kept_gradients_are_never_overwritten_and_accumulation_adds():
    made = bank(hidden=(6, 4))
    x = torch.randn(4, 5, dtype=torch.float64)
    (first,) = torch.autograd.grad(made(x).sum(), [made.weights[0]])
    copied = first.clone()
    torch.autograd.grad((made(x) * 5).sum(), [made.weights[0]])
    assert_close(first, copied, rtol=0, atol=0)
    made(x).sum().backward()
    made(x).sum().backward()
    assert_close(made.weights[0].grad, 2 * copied)
    made.zero_grad(set_to_none=True)
    made(x).sum().backward()
    made(x).sum().backward()
    assert_close(made.weights[0].grad, 2 * copied)


def test_it_survives_copying_saving_and_other_precisions(tmp_path):
    made = bank(dtype=torch.float32)
    x = torch.randn(4, 5)
    made(x).sum().backward()
    twin = copy.deepcopy(made)
    torch.save(made.state_dict(), tmp_path / "bank.pt")
    twin.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    assert_close(twin(x), made(x), rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = made(x)
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), made(x), rtol=0.05, atol=0.05)
    assert_close(made(x[:0]).shape, (0, 3))


def test_it_compiles_to_the_same_numbers():
    made = bank(dtype=torch.float32)
    x = torch.randn(4, 5)
    exported = torch.export.export(made.eval(), (x,)).module()
    assert_close(exported(x), made(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: ClassDiscriminators(0, 3), "argument: features"),
        (lambda: ClassDiscriminators(4, "3"), "argument: classes"),
        (lambda: ClassDiscriminators(4, 3, (0,)), "argument: hidden"),
        (lambda: ClassDiscriminators(4, 3, dropout=1.0), "dropout must be a finite number at least 0 and below 1"),
        (lambda: ClassDiscriminators(4, 3, dropout=None), "argument: dropout"),
        (lambda: ClassDiscriminators(4, 3, (2,))(torch.zeros(2, 5)), r"argument: x\n .*\(2, 5\)"),
        (lambda: ClassDiscriminators(4, 3, (2,))([[0.0] * 4]), "argument: x"),
        (lambda: ClassDiscriminators(4, 3, (2,))(torch.zeros(2, 4), instance=torch.ones(2, 2)), "argument: instance"),
        (
            lambda: ClassDiscriminators(4, 3, (2,))(torch.zeros(2, 4), gradient_scale=torch.ones(2)),
            "argument: gradient_scale",
        ),
    ],
)
def test_bad_input_is_one_clear_error(call, rule):
    with pytest.raises(InvalidArgument, match=rule):
        call()
