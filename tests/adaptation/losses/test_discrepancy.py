"""Every distance against a formula-by-formula double loop in float64, its gradient, and its laws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from convsmith.adaptation.losses.discrepancy import (
    choose_bandwidths,
    class_mmd,
    conditional_embedding,
    conditional_mmd,
    coral,
    energy_distance,
    mean_embedding,
    mmd,
    squared_distances,
)
from convsmith.errors import InvalidArgument

WIDTHS = (0.5, 1.0, 2.0)


def draw(n, m, d=3, shift=0.7, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    return x, torch.randn(m, d, generator=g, dtype=torch.float64) * 1.3 + shift


def kernel(a, b, widths=WIDTHS):
    """Mean over b of exp(-|a-b|^2 / 2b^2), one pair."""
    d2 = sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True))
    return sum(math.exp(-d2 / (2 * w * w)) for w in widths) / len(widths)


def naive_mmd(x, y, estimator, k=kernel):
    n, m = len(x), len(y)
    if estimator == "linear":
        total = 0.0
        for i in range(n // 2):
            s1, s2, t1, t2 = x[2 * i], x[2 * i + 1], y[2 * i], y[2 * i + 1]
            total += k(s1, s2) + k(t1, t2) - k(s1, t2) - k(s2, t1)
        return total / (n // 2)
    unbiased = estimator == "unbiased"
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if not (unbiased and i == j))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if not (unbiased and i == j))
    xy = sum(k(x[i], y[j]) for i in range(n) for j in range(m))
    return xx / (n * (n - unbiased)) + yy / (m * (m - unbiased)) - 2 * xy / (n * m)


@pytest.mark.parametrize(("estimator", "n", "m"), [("biased", 5, 8), ("unbiased", 5, 8), ("linear", 7, 7)])
def test_mmd_equals_the_formula_pair_by_pair(estimator, n, m):
    x, y = draw(n, m)
    assert_close(
        float(mmd(x, y, bandwidths=WIDTHS, estimator=estimator)), naive_mmd(x, y, estimator), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("estimator", ["biased", "unbiased", "linear"])
def test_mmd_gradient(estimator):
    x, y = draw(6, 6)
    f = lambda a, b: mmd(a, b, bandwidths=WIDTHS, estimator=estimator)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x.requires_grad_(), y.requires_grad_()))


@given(n=st.integers(1, 9), m=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_biased_form_is_never_negative_and_symmetric(n, m, seed):
    x, y = draw(n, m, seed=seed, shift=0.0)
    value = mmd(x, y, bandwidths=WIDTHS, estimator="biased")
    assert float(value) >= -1e-15
    assert_close(value, mmd(y, x, bandwidths=WIDTHS, estimator="biased"))


def test_the_biased_form_of_equal_samples_is_zero():
    x, _ = draw(9, 1)
    assert_close(mmd(x, x.clone(), bandwidths=WIDTHS, estimator="biased"), x.new_tensor(0.0), rtol=0, atol=1e-15)


def test_the_unbiased_and_linear_forms_average_to_zero_and_may_be_negative():
    for estimator in ("unbiased", "linear"):
        values = torch.stack([mmd(*draw_same(20, seed), bandwidths=WIDTHS, estimator=estimator) for seed in range(400)])
        error = float(values.std() / math.sqrt(len(values)))
        assert abs(float(values.mean())) < 3 * error
        assert float(values.min()) < 0
    biased = torch.stack([mmd(*draw_same(20, s), bandwidths=WIDTHS, estimator="biased") for s in range(50)])
    assert float(biased.mean()) > 0.01  # what the diagonal adds


def draw_same(n, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=g, dtype=torch.float64), torch.randn(n, 3, generator=g, dtype=torch.float64)


def test_bandwidths_follow_the_data_and_carry_no_gradient():
    x, y = draw(12, 9)
    assert_close(mmd(x, y), mmd(x * 1000, y * 1000))  # the median rule makes it free of units
    assert float(mmd(x, y, bandwidths="mean")) != float(mmd(x, y))
    assert not choose_bandwidths(squared_distances(x.requires_grad_(), y)).requires_grad


def test_distances_survive_a_far_away_origin_in_float32():
    x, y = draw(20, 30)
    near = torch.cdist(x, y).square()
    far = squared_distances((x + 1000).float(), (y + 1000).float())
    assert_close(far.double(), near, rtol=1e-3, atol=1e-3)


def test_half_precision_is_measured_in_float32():
    x, y = draw(8, 8)
    assert mmd(x.bfloat16(), y.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(mmd(x.float(), y.float()), mmd(x, y).float(), rtol=1e-4, atol=1e-6)


def test_mean_embedding_gives_mmd_back():
    x, y = draw(6, 7)
    joint = [mean_embedding(a, b, bandwidths=WIDTHS).mean() for a, b in ((x, x), (y, y), (x, y))]
    assert_close(joint[0] + joint[1] - 2 * joint[2], mmd(x, y, bandwidths=WIDTHS, estimator="biased"))


def test_conditional_embedding_is_kernel_ridge_regression():
    x, _ = draw(10, 1)
    points = x[:3] + 0.1
    gram = torch.tensor([[kernel(a, b) for b in x] for a in x], dtype=torch.float64)
    at = torch.tensor([[kernel(a, b) for b in x] for a in points], dtype=torch.float64)
    expected = at @ torch.linalg.inv(gram + 10 * 0.05 * torch.eye(10, dtype=torch.float64))
    assert_close(conditional_embedding(points, x, ridge=0.05, bandwidths=WIDTHS), expected)


def test_conditional_mmd_equals_the_four_traces():
    x, y = draw(6, 9)
    a, b = torch.rand(6, 4, dtype=torch.float64).softmax(1), torch.rand(9, 4, dtype=torch.float64).softmax(1)
    k = lambda p, q: torch.tensor([[kernel(i, j) for j in q] for i in p], dtype=torch.float64)  # noqa: E731
    inv = lambda gram: torch.linalg.inv(gram + len(gram) * 0.1 * torch.eye(len(gram), dtype=torch.float64))  # noqa: E731
    k1, k2, k12 = k(x, x), k(y, y), k(x, y)
    a1, a2 = inv(k1), inv(k2)
    expected = (
        (k1 @ a1 @ (a @ a.T) @ a1).trace()
        + (k2 @ a2 @ (b @ b.T) @ a2).trace()
        - 2 * (k12 @ a2 @ (b @ a.T) @ a1).trace()
    )
    assert_close(conditional_mmd(x, y, a, b, ridge=0.1, bandwidths=WIDTHS), expected)
    assert_close(conditional_mmd(x, x, a, a, bandwidths=WIDTHS), x.new_tensor(0.0), rtol=0, atol=1e-12)
    f = lambda p, q: conditional_mmd(p, q, a, b, ridge=0.1, bandwidths=WIDTHS)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x.requires_grad_(), y.requires_grad_()))


def test_class_mmd_equals_mmd_of_the_images_of_each_class():
    x, y = draw(9, 8)
    labels, guesses = torch.arange(9) % 3, torch.arange(8) % 2  # class 2 is missing in the target
    one_hot = lambda v: torch.nn.functional.one_hot(v, 3).double()  # noqa: E731
    per_class = [mmd(x[labels == k], y[guesses == k], bandwidths=WIDTHS, estimator="biased") for k in (0, 1)]
    value = class_mmd(x, y, one_hot(labels), one_hot(guesses), bandwidths=WIDTHS)
    assert_close(value, torch.stack(per_class).mean())
    weighted = class_mmd(
        x, y, one_hot(labels), one_hot(guesses), weights=torch.tensor([3.0, 1.0, 5.0]), bandwidths=WIDTHS
    )
    assert_close(weighted, (3 * per_class[0] + per_class[1]) / 4)


def test_energy_distance_equals_the_formula_and_has_a_gradient_at_coinciding_points():
    x, y = draw(5, 7)
    d = lambda p, q: torch.stack([(i - j).norm() for i in p for j in q]).mean()  # noqa: E731
    assert_close(energy_distance(x, y), 2 * d(x, y) - d(x, x) - d(y, y))
    twice = torch.cat([x, x]).requires_grad_()
    energy_distance(twice, y).backward()
    assert bool(torch.isfinite(twice.grad).all())
    assert torch.autograd.gradcheck(energy_distance, (x.requires_grad_(), y.requires_grad_()))


def test_coral_equals_the_covariances():
    x, y = draw(6, 9)
    covariance = lambda p: (p - p.mean(0)).T @ (p - p.mean(0)) / (len(p) - 1)  # noqa: E731
    expected = (covariance(x) - covariance(y)).square().sum() / (4 * 9)
    assert_close(coral(x, y), expected)
    assert torch.autograd.gradcheck(coral, (x.requires_grad_(), y.requires_grad_()))


def five_widths(x, y):
    """The median rule written out: the lower middle of the squared distances of different points, times 2^u / 2."""
    joint = [*x.double().tolist(), *y.double().tolist()]
    apart = sorted(math.dist(a, b) ** 2 for i, a in enumerate(joint) for j, b in enumerate(joint) if i != j and a != b)
    middle = apart[(len(apart) - 1) // 2] if apart else 1.0
    return tuple(math.sqrt(2.0**u * middle / 2) for u in (-2, -1, 0, 1, 2))


def mostly_alike(dtype, offset=0.0):
    """Features as dead ReLUs give them: most rows are one point, away from zero."""
    x, y = torch.full((8, 4), 0.3 + offset, dtype=dtype), torch.full((9, 4), 0.3 + offset, dtype=dtype)
    x[0, 1] += 1.0
    y[:2, 2] += 0.7
    return x, y


@pytest.mark.parametrize(("dtype", "offset"), [(torch.float64, 0.0), (torch.float32, 0.0), (torch.float32, 50.0)])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_the_median_rule_survives_that_most_points_coincide(dtype, offset, estimator):
    x, y = mostly_alike(dtype, offset)
    expected = naive_mmd(x.double(), y.double(), estimator, lambda a, b: kernel(a, b, five_widths(x, y)))
    value = mmd(x, y, estimator=estimator)
    assert value.dtype == dtype
    assert_close(float(value), expected, rtol=0, atol=20 * torch.finfo(dtype).eps)
    a, b = torch.eye(3)[torch.arange(8) % 3].to(dtype), torch.eye(3)[torch.arange(9) % 2].to(dtype)
    widths = five_widths(x, y)
    exact = conditional_mmd(x.double(), y.double(), a.double(), b.double(), bandwidths=widths)
    # the ridge of 0.01 n bounds what rounding of the kernel does to the solution by its inverse, squared
    assert_close(float(conditional_mmd(x, y, a, b)), float(exact), rtol=1e4 * torch.finfo(dtype).eps, atol=1e-9)


def test_points_that_all_coincide_are_at_distance_zero():
    same = torch.full((5, 3), 0.1)
    for value in (mmd(same, same), mmd(same, same, bandwidths="mean"), energy_distance(same, same)):
        assert float(value) == 0.0


def test_two_far_clusters_are_measured_in_float32():
    x, y = draw(24, 12, shift=0.0)
    x, y = x.float(), (y + 3e4).float()
    widths = five_widths(x, y)
    expected = naive_mmd(x.double(), y.double(), "biased", lambda a, b: kernel(a, b, widths))
    assert widths[2] < 10  # the middle pair lies inside a cluster
    assert_close(float(mmd(x, y, estimator="biased")), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_scale_of_the_features_costs_no_digit(scale):
    x, y = draw(12, 9)
    assert_close(mmd((x * scale).float(), (y * scale).float()), mmd(x, y).float(), rtol=0, atol=1e-5)


def test_nan_is_answered_with_nan():
    x, y = draw(6, 6)
    x[2, 1] = math.nan
    for value in (
        mmd(x, y),
        mmd(x.float(), y.float()),
        energy_distance(x, y),
        energy_distance(x.float(), y),
        coral(x, y),
    ):
        assert math.isnan(float(value))


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: mmd([[1.0]], torch.zeros(3, 4)), "argument: source\n  given:    list"),
        (lambda: mmd(torch.zeros(3, 4), None), "argument: target\n  given:    NoneType"),
        (lambda: coral(torch.zeros(3, 4).numpy(), torch.zeros(3, 4)), "argument: source\n  given:    ndarray"),
        (lambda: mmd(torch.zeros(3, 4, dtype=torch.cfloat), torch.zeros(3, 4)), "argument: source\n .*complex64"),
        (lambda: mmd(torch.zeros(3, 4).to_sparse(), torch.zeros(3, 4)), "argument: source\n .*sparse"),
        (lambda: mmd(torch.zeros(3, 4, device="meta"), torch.zeros(3, 4)), "argument: source\n .*meta"),
        (lambda: mmd(torch.zeros(3, 4).long(), torch.zeros(3, 4)), "argument: source\n .*int64"),
        (lambda: mmd(torch.zeros(3, 4), torch.zeros(3, 4), bandwidths=[None]), "argument: bandwidths"),
        (lambda: mmd(torch.zeros(3, 4), torch.zeros(3, 4), estimator=3), "argument: estimator"),
        (lambda: conditional_embedding(torch.zeros(3, 4), torch.zeros(3, 4), ridge="a"), "argument: ridge"),
        (lambda: mean_embedding("a", torch.zeros(3, 4)), "argument: points"),
        (
            lambda: conditional_mmd(torch.zeros(3, 4), torch.zeros(2, 4), torch.zeros(3, 2), torch.zeros(2, 3)),
            "argument: target_outcomes",
        ),
        (
            lambda: class_mmd(torch.zeros(3, 4), torch.zeros(2, 4), torch.zeros(2, 2), torch.zeros(2, 2)),
            "argument: source_probabilities",
        ),
        (
            lambda: class_mmd(
                torch.zeros(3, 4), torch.zeros(2, 4), torch.zeros(3, 2), torch.zeros(2, 2), weights=torch.ones(3)
            ),
            "argument: weights",
        ),
        (lambda: mmd(torch.zeros(3, 2), torch.zeros(3, 4)), "same width"),
        (lambda: mmd(torch.zeros(0, 2), torch.zeros(3, 2)), "at least one sample"),
        (lambda: mmd(torch.zeros(1, 2), torch.zeros(3, 2)), "two samples on each side"),
        (lambda: mmd(torch.zeros(4, 2), torch.zeros(3, 2), estimator="linear"), "same number"),
        (lambda: mmd(torch.zeros(4, 2), torch.zeros(3, 2), estimator="unbaised"), "did you mean 'unbiased'"),
        (lambda: mmd(torch.zeros(4, 2), torch.zeros(3, 2), bandwidths=[0.0]), "positive"),
        (lambda: mmd(torch.zeros(4, 2), torch.zeros(3, 2), bandwidths="mode"), "argument: bandwidths"),
        (lambda: coral(torch.zeros(1, 2), torch.zeros(3, 2)), "two samples"),
    ],
)
def test_bad_input_is_one_clear_error(call, rule):
    with pytest.raises(InvalidArgument, match=rule):
        call()
