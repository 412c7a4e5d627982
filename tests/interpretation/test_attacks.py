"""Attacks stay inside the ball and the pixel range, on 8-bit values, and reach what they aim at."""

import pytest
import torch

from convsmith.errors import InvalidArgument
from convsmith.interpretation import attack
from tests.interpretation.untouched import assert_untouched, snapshot

EPS = 24 / 255


@pytest.mark.parametrize("method", ["fgsm", "ifgsm", "pgd", "adaptive"])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_ball_the_range_and_the_8_bit_grid_hold(digits, method, targeted):
    x, y = digits.test_x[:20], digits.test_y[:20]
    goal = (y + 1) % 10 if targeted else y
    moved = attack(digits.model, x, goal, method, EPS, targeted=targeted)
    original = (x * 255).round() / 255
    assert (moved - original).abs().max() <= EPS + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    torch.testing.assert_close(moved * 255, (moved * 255).round(), atol=1e-4, rtol=0)
    assert not torch.equal(moved, x)


def test_fgsm_is_one_step_along_the_sign(digits):
    x, y = digits.test_x[:6], digits.test_y[:6]
    points = x.clone().requires_grad_(True)
    torch.nn.functional.cross_entropy(digits.model(points), y, reduction="sum").backward()
    expected = (x + EPS * points.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(attack(digits.model, x, y, "fgsm", EPS, round_to_8bit=False), expected)


def test_iterating_hurts_more_than_one_step_and_targets_are_reached(digits):
    x, y = digits.test_x[:100], digits.test_y[:100]

    def accuracy(images):
        return (digits.model(images).argmax(1) == y).float().mean().item()

    clean, one, many = (
        accuracy(x),
        accuracy(attack(digits.model, x, y, "fgsm", EPS)),
        accuracy(attack(digits.model, x, y, "ifgsm", EPS)),
    )
    assert many <= one < clean - 0.1
    goal = (y + 1) % 10
    moved = attack(digits.model, x, goal, "ifgsm", 0.3, targeted=True, steps=20)
    assert (digits.model(moved).argmax(1) == goal).float().mean() > 0.6


def test_mean_and_std_are_undone_and_redone(digits):
    mean, std = (0.3,), (0.4,)

    class Normalised(torch.nn.Module):
        def forward(self, x):
            return digits.model(x * std[0] + mean[0])

    x, y = digits.test_x[:8], digits.test_y[:8]
    plain = attack(digits.model, x, y, "ifgsm", EPS)
    normal = attack(Normalised().eval(), (x - mean[0]) / std[0], y, "ifgsm", EPS, mean=mean, std=std)
    close = ((normal * std[0] + mean[0]) - plain).abs() < 1e-4
    assert close.float().mean() > 0.98  # rounding may flip the sign of a vanishing gradient here and there


def test_pgd_is_repeatable_by_seed_and_leaves_global_random_state(digits):
    x, y = digits.test_x[:4], digits.test_y[:4]
    state = torch.get_rng_state()
    a, b = (attack(digits.model, x, y, "pgd", EPS, seed=3) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(a, attack(digits.model, x, y, "pgd", EPS, seed=4))
    assert all(p.grad is None for p in digits.model.parameters())


def test_stronger_attacks_come_through_art(digits):
    pytest.importorskip("art")
    x, y = digits.test_x[:4], digits.test_y[:4]
    moved = attack(digits.model, x, y, "DeepFool", max_iter=10)
    assert moved.shape == x.shape
    assert (digits.model(moved).argmax(1) != digits.model(x).argmax(1)).any()
    with pytest.raises(InvalidArgument, match="targeted"):
        attack(digits.model, x, y, "DeepFool", targeted=True)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"method": "fsgm"}, "fgsm"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"steps": 0}, "step"),
        ({"method": "ifgsm", "step": -0.1}, "step"),
        ({"std": (0.0,)}, "std"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"mean": (0.9,), "std": (2.0,)}, "pixels"),
        ({"momentum": 1.0}, "setting"),
        ({"match": "activations"}, "setting"),
        ({"method": "adaptive", "mach": "activations"}, "match"),
        ({"method": "adaptive", "match": "activation"}, "activations"),
        ({"method": "adaptive", "weight": -1.0}, "weight"),
        ({"method": "adaptive", "margin": -1.0}, "margin"),
        ({"method": "adaptive", "queries": -1}, "queries"),
        ({"method": "adaptive", "guide": torch.zeros(1, 1, 8, 8)}, "guide"),
    ],
)
def test_bad_settings_are_refused(digits, settings, word):
    with pytest.raises(InvalidArgument, match=word):
        attack(digits.model, digits.test_x[:2], digits.test_y[:2], **settings)


@pytest.mark.parametrize("method", ["fgsm", "pgd", "adaptive"])
def test_inference_mode_of_the_caller_does_not_matter(digits, method):
    x, y = digits.test_x[:4], digits.test_y[:4]
    expected = attack(digits.model, x, y, method, EPS, steps=2)
    with torch.inference_mode():
        labels = y.clone()
        assert torch.equal(attack(digits.model, x.clone(), labels, method, EPS, steps=2), expected)
    assert torch.equal(attack(digits.model, x, labels, method, EPS, steps=2), expected)


@pytest.mark.parametrize("method", ["fgsm", "adaptive"])
def test_a_network_that_returns_more_than_its_logits_is_attacked(digits, method):
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = digits.model

        def forward(self, x):
            return {"features": x.flatten(1), "logits": self.inner(x)}

    x, y = digits.test_x[:4], digits.test_y[:4]
    more = {"score": lambda images: images.sum((1, 2, 3)), "queries": 2} if method == "adaptive" else {}
    moved = attack(Named().eval(), x, y, method, EPS, steps=2, **more)
    assert torch.equal(moved, attack(digits.model, x, y, method, EPS, steps=2, **more))


def test_art_clears_no_gradient_of_the_network(digits):
    pytest.importorskip("art")
    for parameter in digits.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = snapshot(digits.model)
    attack(digits.model, digits.test_x[:2], digits.test_y[:2], "ProjectedGradientDescentPyTorch", max_iter=2)
    assert_untouched(digits.model, before)
    with pytest.raises(InvalidArgument, match="max_iter"):
        attack(digits.model, digits.test_x[:2], digits.test_y[:2], "DeepFool", steps=5)


@pytest.mark.parametrize("labels", [[-1, 0], [-100, 0], [0, 10]])
def test_labels_that_are_no_classes_are_refused(digits, labels):
    with pytest.raises(InvalidArgument, match="labels"):
        attack(digits.model, digits.test_x[:2], torch.tensor(labels))


@pytest.mark.parametrize("cut", [torch.Tensor.detach, torch.no_grad()(torch.Tensor.clone)])
@pytest.mark.parametrize("learns", [True, False])
def test_a_network_without_gradients_is_refused_by_its_name(cut, learns):
    """Regression: an int8 network ended in torch's words about an unused tensor, as a bug of ours."""

    class Rounded(torch.nn.Linear):
        def forward(self, x):
            return super().forward(cut(x).flatten(1))

    model = Rounded(4, 3).requires_grad_(learns).eval()
    with pytest.raises(InvalidArgument, match=r"autograd can follow\n.*model\n.*Rounded"):
        attack(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), "fgsm", EPS)
