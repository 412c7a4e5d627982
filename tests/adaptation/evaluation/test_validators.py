"""Each score against its formula, its direction, and what it does on a collapsed run."""

import math

import pytest
import torch
from torch.testing import assert_close

from convsmith.adaptation.evaluation import validators
from convsmith.adaptation.evaluation.validators import (
    density_ratio,
    dev_risk,
    guarded,
    higher_is_better,
    measure,
    oriented,
    score,
)
from convsmith.errors import InvalidArgument

P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.6, 0.3, 0.1]], dtype=torch.float64)


def h(p):
    return -sum(v * math.log(v) for v in p if v > 0)


def test_entropy_and_infomax():
    mean = sum(h(row.tolist()) for row in P) / 4
    assert_close(score("entropy", P), mean)
    assert_close(score("infomax", P), mean - h(P.mean(0).tolist()))


def test_snd_row_by_row():
    rows = P / P.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(4):
        others = [math.exp(float(rows[i] @ rows[j]) / 0.05) for j in range(4) if j != i]
        total += h([v / sum(others) for v in others])
    assert_close(score("snd", P), total / 4)


def test_bnm_is_the_nuclear_norm():
    assert_close(score("bnm", P), float(torch.linalg.svdvals(P).sum()) / 4)
    assert_close(score("bnm", torch.eye(3).double()), 1.0)


def test_source_accuracy_and_oracle():
    labels = torch.tensor([0, 1, 0, 0])
    assert score("source-accuracy", source_probabilities=P, source_labels=labels) == 0.75
    assert score("oracle", P, target_labels=labels) == 0.75
    assert validators.VALIDATORS.entry("oracle").traits["uses_target_labels"]
    label_free = [n for n in validators.available() if not validators.VALIDATORS.entry(n).traits["uses_target_labels"]]
    assert sorted(label_free) == ["bnm", "dev", "entropy", "infomax", "snd", "source-accuracy"]


def test_dev_risk_is_the_control_variate_formula():
    w, e = torch.tensor([0.5, 2.0, 1.0, 0.7]).double(), torch.tensor([0.0, 1.0, 1.0, 0.0]).double()
    we = w * e
    cov = ((we - we.mean()) * (w - w.mean())).sum() / 3
    eta = -cov / (((w - w.mean()) ** 2).sum() / 3)
    assert_close(dev_risk(w, e), float(we.mean() + eta * w.mean() - eta))
    assert_close(dev_risk(torch.ones(4).double(), e), 0.5)


def test_dev_weighs_source_errors_by_how_target_like_they_are():
    g = torch.Generator().manual_seed(0)
    source, held = torch.randn(300, 2, generator=g), torch.randn(200, 2, generator=g)
    target = torch.randn(300, 2, generator=g) + torch.tensor([1.5, 0.0])
    right = torch.tensor([[0.9, 0.1]]).repeat(200, 1)

    def dev(wrong):
        labels = wrong.long()
        return score(
            "dev",
            source_training_features=source,
            target_features=target,
            source_features=held,
            source_probabilities=right,
            source_labels=labels,
        )

    near, far = dev(held[:, 0] > 0.7), dev(held[:, 0] < -0.7)
    assert near > 0.5 > far > -0.1
    assert abs(dev(torch.zeros(200))) < 1e-12


def test_dev_does_not_ask_in_what_order_the_rows_are():
    # 6 classes, sorted: unshuffled folds would test every candidate on classes that its training has not seen
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score

    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    means = draw(6, 12)
    source = means.repeat_interleave(20, 0) + draw(120, 12)
    target = means[:3].repeat_interleave(20, 0) + draw(12) + draw(60, 12)
    ratio = density_ratio(source, target, source)
    mixed = density_ratio(source[torch.randperm(120, generator=g)], target[torch.randperm(60, generator=g)], source)
    assert_close(ratio, mixed, rtol=1e-6, atol=1e-6)
    # the reference: the penalty that wins over ten divisions into folds
    both = torch.cat([source, target])
    z, y = ((both - both.mean(0)) / both.std(0)).numpy(), [0] * 120 + [1] * 60
    folds = RepeatedStratifiedKFold(n_splits=3, n_repeats=10, random_state=5)
    models = [LogisticRegression(C=c, max_iter=500) for c in (0.01, 0.1, 1.0, 10.0, 100.0)]
    best = max(models, key=lambda m: cross_val_score(m, z, y, cv=folds, scoring="neg_log_loss").mean())
    p = best.fit(z, y).predict_proba(z[:120])
    assert_close(ratio, torch.from_numpy(2 * p[:, 1] / p[:, 0]), rtol=1e-6, atol=1e-6)


def test_labels_of_one_image_are_not_spread_over_all():
    with pytest.raises(InvalidArgument, match="argument: target_labels"):
        score("oracle", P, target_labels=torch.tensor([0]))
    with pytest.raises(InvalidArgument, match="argument: target_labels"):
        score("oracle", P, target_labels=torch.tensor([[0], [1], [0], [0]]))
    with pytest.raises(InvalidArgument, match="argument: source_labels"):
        score("source-accuracy", source_probabilities=P, source_labels=torch.tensor([0]))


WRONG = {
    "str": "p",
    "list": P.tolist(),
    "numpy": P.numpy(),
    "sparse": P.to_sparse(),
    "meta": P.to("meta"),
    "complex": P.to(torch.cfloat),
    "integers": P.long(),
    "one dimension": P[0],
    "logits": P * 3 - 1,
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", ["entropy", "infomax", "snd", "bnm", "oracle"])
def test_wrong_evidence_is_called_by_its_name(name, value):
    with pytest.raises(InvalidArgument, match="argument: target_probabilities"):
        score(name, value, target_labels=torch.tensor([0, 1, 0, 0]))


def test_directions():
    assert [n for n in validators.available() if not higher_is_better(n)] == ["dev", "entropy", "infomax"]
    assert oriented("entropy", 0.3) == -0.3
    assert oriented("snd", 0.3) == 0.3


def test_confidence_prefers_a_collapsed_run_and_diversity_does_not():
    collapsed = torch.tensor([[0.99, 0.005, 0.005]] * 30).double()
    healthy = P.repeat(8, 1)
    better = lambda name: oriented(name, score(name, collapsed)) > oriented(name, score(name, healthy))  # noqa: E731
    assert better("entropy")
    assert better("snd")
    assert not better("infomax")
    assert not better("bnm")


def test_the_guard_drops_runs_that_forgot_the_source():
    assert guarded(0.91, 1.0)
    assert not guarded(0.89, 1.0)
    assert guarded(0.1, None)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: score("entropie", P), "did you mean 'entropy'"),
        (lambda: density_ratio(P[:2], P, P), "three images a side"),
        (lambda: score("dev", P), "needs source_training_features"),
        (lambda: score("oracle", P), "needs target_labels"),
        (lambda: score("entropy", P[:0]), "needs target_probabilities"),
        (lambda: score("entropy", P * float("nan")), "not finite"),
        (lambda: score("entropy", P, labels=None), "no evidence"),
        (lambda: score("snd", P[:1]), "two target images"),
        (lambda: measure("bnm", validators.Evidence()), "needs target_probabilities"),
    ],
)
def test_bad_input_is_one_clear_error(call, rule):
    with pytest.raises(InvalidArgument, match=rule):
        call()
