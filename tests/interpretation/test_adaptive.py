"""The attack that knows of the detector: what it matches comes closer, what it asks the detector for falls."""

import pytest
import torch

from convsmith.interpretation import RouteDetector, attack, find_routes

EPS = 40 / 255


def inside(model, x, match):
    """What is matched, layer by layer, written out for the small network of these tests."""
    if match == "contributions":
        gates = [torch.ones(len(x), w, requires_grad=True) for w in (16, 32, 32)]
        place, z = 0, x
        for layer in model:
            z = layer(z)
            if isinstance(layer, torch.nn.Conv2d):
                z = z * gates[place][:, :, None, None]
                place += 1
        return torch.autograd.grad(z.amax(1).sum(), gates)
    means = []
    for layer in model:
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            means.append(x.detach().mean((2, 3)))
    return means


def distance(model, x, reference, match):
    pairs = zip(inside(model, x, match), inside(model, reference, match), strict=True)
    return sum((a - b).square().sum(1) / b.square().sum(1) for a, b in pairs)


@pytest.mark.parametrize("match", ["activations", "contributions"])
def test_what_is_matched_comes_closer_while_the_network_is_fooled(digits, match):
    x, y = digits.test_x[:60], digits.model(digits.test_x[:60]).argmax(1)
    settings = {"match": match, "margin": 0.5, "steps": 30, "sites": "conv"}
    free = attack(digits.model, x, y, "adaptive", EPS, weight=0.0, **settings)
    matched = attack(digits.model, x, y, "adaptive", EPS, weight=3.0, **settings)
    fooled = (digits.model(free).argmax(1) != y) & (digits.model(matched).argmax(1) != y)
    assert fooled.sum() > 20
    # image by image: the mean of the distances hangs on the few largest and moves with the machine's last digits
    before, after = (distance(digits.model, z, x, match)[fooled] for z in (free, matched))
    assert (after < before).float().mean() > 0.8  # by chance: 1e-5 for 20 images
    assert (after / before).log().mean().exp() < 0.9


def test_a_guide_is_approached_and_a_target_reached(digits):
    x = digits.test_x[:40]
    y = digits.model(x).argmax(1)
    target = (y + 1) % 10
    labels = digits.model(digits.train_x).argmax(1)
    guide = torch.stack([digits.train_x[(labels == t).nonzero()[0, 0]] for t in target.tolist()])
    settings = {"targeted": True, "guide": guide, "sites": "conv", "steps": 40}
    moved = attack(digits.model, x, target, "adaptive", 0.5, **settings)
    reached = digits.model(moved).argmax(1) == target
    assert reached.float().mean() > 0.6
    assert (distance(digits.model, moved, guide, "activations") < distance(digits.model, x, guide, "activations")).all()
    # every image has its own guide, whatever the batch
    first = attack(digits.model, x[:1], target[:1], "adaptive", 0.5, **{**settings, "guide": guide[:1]})
    apart = attack(digits.model, x[:7], target[:7], "adaptive", 0.5, batch_size=1, **{**settings, "guide": guide[:7]})
    torch.testing.assert_close(apart[:1], first, atol=1e-6, rtol=0)


def test_questions_to_the_detector_lower_its_score_and_go_on_fooling(digits):
    find = {"mode": "paper", "steps": 8, "sites": "conv"}
    train, y = digits.train_x[:60], digits.train_y[:60]
    moved = attack(digits.model, train, y, "ifgsm", EPS)
    clean, bad = (find_routes(digits.model, z, **find) for z in (train, moved))
    detector = RouteDetector(trees=20).fit(clean, bad)

    def score(images):
        return detector.score(find_routes(digits.model, images, **find))

    x = digits.test_x[:30]
    y = digits.model(x).argmax(1)
    settings = {"steps": 10, "sites": "conv", "seed": 1, "score": score}
    start = attack(digits.model, x, y, "adaptive", EPS, queries=0, **settings)
    end = attack(digits.model, x, y, "adaptive", EPS, queries=15, **settings)
    fooled = digits.model(start).argmax(1) != y
    assert fooled.sum() > 10
    assert (digits.model(end).argmax(1) != y)[fooled].all()  # what fooled once goes on doing so
    assert (score(end)[fooled] <= score(start)[fooled] + 1e-9).all()
    assert score(end)[fooled].mean() < score(start)[fooled].mean() - 0.02
    original = (x * 255).round() / 255
    assert (end - original).abs().max() <= EPS + 1e-6
    torch.testing.assert_close(end * 255, (end * 255).round(), atol=1e-4, rtol=0)


def test_the_model_is_left_as_it_was(digits):
    before = {k: v.clone() for k, v in digits.model.state_dict().items()}
    state = torch.get_rng_state()
    attack(digits.model, digits.test_x[:3], digits.test_y[:3], "adaptive", EPS, steps=2, match="contributions")
    assert torch.equal(state, torch.get_rng_state())
    for name, value in digits.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None and p.requires_grad for p in digits.model.parameters())
    assert all(not m._forward_hooks for m in digits.model.modules())
