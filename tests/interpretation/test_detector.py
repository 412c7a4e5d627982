"""The detector: honest splits, honest thresholds, nothing where there is nothing, and no pickle."""

import numpy as np
import pytest
import torch

from convsmith.errors import InvalidArgument
from convsmith.interpretation import (
    ArtDetector,
    RouteDetector,
    Routes,
    attack,
    auroc,
    baseline_features,
    detection_report,
    find_routes,
)
from convsmith.interpretation.detector import folds_by_group

EPS = 40 / 255


@pytest.fixture(scope="module")
def pairs(_trained):
    """Routes of clean digits and of their adversarial versions: 60 images to fit on, 60 others to score."""
    x, y = _trained.test_x[:120], _trained.test_y[:120]
    moved = attack(_trained.model, x, y, "ifgsm", EPS)
    x8 = (x * 255).round() / 255
    find = {"mode": "paper", "index": torch.arange(120)}
    return find_routes(_trained.model, x8, **find), find_routes(_trained.model, moved, **find)


@pytest.mark.parametrize("classifier", ["random-forest", "adaboost", "gradient-boosting"])
def test_adversarial_digits_are_told_from_clean_ones_and_the_file_scores_the_same(pairs, classifier, tmp_path):
    clean, bad = pairs
    detector = RouteDetector(classifier, seed=1, trees=40).fit(clean[:60], bad[:60])
    a, b = detector.score(clean[60:]), detector.score(bad[60:])
    report = detection_report(a, b, clean_index=clean.index[60:], adversarial_index=bad.index[60:], resamples=200)
    assert report.auroc_low <= report.auroc <= report.auroc_high
    assert report.auroc_low > 0.6  # routes do tell; how well is a matter of a study, not of a unit test
    loaded = RouteDetector.load(detector.save(tmp_path / "d.safetensors"))
    assert torch.equal(loaded.score(bad), detector.score(bad))
    assert torch.equal(loaded.predict(bad), detector.predict(bad))
    assert b"pickle" not in (tmp_path / "d.safetensors").read_bytes()


def test_the_published_leak_is_gone_two_passes_over_clean_images_cannot_be_told_apart(digits):
    """Released code kept optimiser momentum between the two passes: AUC 1.0 on clean pairs. Here it must be 0.5."""
    x = digits.test_x[:120]
    first, second = (find_routes(digits.model, x, mode="paper") for _ in range(2))
    detector = RouteDetector(trees=30).fit(first[:60], second[:60])
    assert auroc(detector.score(first[60:]).numpy(), detector.score(second[60:]).numpy()) == 0.5


def test_clean_images_against_other_clean_images_score_one_half(digits):
    routes = find_routes(digits.model, digits.test_x[:400], mode="paper", batch_size=100)
    values = []
    for seed in range(4):
        order = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
        a, b = routes[order[:100]], routes[order[100:200]]
        detector = RouteDetector(seed=seed, trees=30).fit(a, b)
        values.append(
            auroc(detector.score(routes[order[200:300]]).numpy(), detector.score(routes[order[300:]]).numpy())
        )
    assert abs(np.mean(values) - 0.5) < 0.05


def test_versions_of_one_image_never_sit_on_both_sides():
    group = np.asarray([3, 3, 1, 2, 2, 2, 9, 8, 8, 1])
    splits = folds_by_group(group, seed=0, folds=3)
    assert sorted(np.concatenate([test for _, test in splits]).tolist()) == list(range(10))
    for train, test in splits:
        assert not set(group[train]) & set(group[test])


def test_the_threshold_keeps_the_asked_false_positive_rate_on_new_clean_images(pairs):
    clean, bad = pairs
    detector = RouteDetector(seed=0, trees=40, false_positive_rate=0.1).fit(clean[:80], bad[:80])
    assert (detector.out_of_fold_[:80] > detector.threshold_).mean() <= 0.1
    assert detector.predict(clean[80:]).float().mean() < 0.35
    detector.set_threshold(clean[80:], 0.05)
    assert detector.predict(clean[80:]).float().mean() <= 0.05


def test_only_some_layers_may_be_used(pairs):
    clean, bad = pairs
    layer = clean.layers[-1]
    detector = RouteDetector(layers=[layer], trees=10).fit(clean[:40], bad[:40])
    only = Routes.concatenate([clean[40:60]])
    assert detector.score(only).shape == (20,)
    assert detector.widths_ == {layer: clean.gates[layer].shape[1]}


def test_routes_found_with_other_settings_are_refused(digits, pairs):
    clean, bad = pairs
    detector = RouteDetector(trees=5).fit(clean[:20], bad[:20])
    with pytest.raises(InvalidArgument, match="settings"):
        detector.score(find_routes(digits.model, digits.test_x[:2], mode="paper", gamma=0.01))
    with pytest.raises(InvalidArgument, match="layers"):
        detector.score(find_routes(digits.model, digits.test_x[:2], mode="paper", layers=["0"]))
    with pytest.raises(InvalidArgument, match="not fitted"):
        RouteDetector().score(clean)
    with pytest.raises(InvalidArgument, match="rate"):
        RouteDetector(false_positive_rate=0.0).fit(clean, bad)
    for wrong in ({"trees": 0}, {"seed": -1}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            RouteDetector(**wrong).fit(clean[:20], bad[:20])
    with pytest.raises(InvalidArgument, match="do not tell"):
        RouteDetector("adaboost", trees=5).fit(clean[:20], clean[:20])
    with pytest.raises(InvalidArgument, match="adaboost"):
        RouteDetector("adabost").fit(clean, bad)
    with pytest.raises(InvalidArgument, match="two images"):
        RouteDetector(trees=5).fit(clean[:1], bad[:1])
    for wrong in (-0.1, 1.0):
        with pytest.raises(InvalidArgument, match="rate"):
            detector.set_threshold(clean, wrong)
    assert detector.false_positive_rate == 0.05


@pytest.mark.parametrize("features", ["routes", "logits", "activations"])
def test_images_of_another_size_are_refused(digits, tmp_path, features):
    def look(images):
        if features == "routes":
            return find_routes(digits.model, images, mode="paper", steps=3)
        return baseline_features(digits.model, images, features)

    x = digits.test_x[:12]
    detector = RouteDetector(trees=3).fit(look(x), look(x.flip(3)))
    detector = RouteDetector.load(detector.save(tmp_path / "d.safetensors"))
    detector.check_network(digits.model, x)
    detector.score(look(x))
    larger = torch.nn.functional.interpolate(x, size=12)
    with pytest.raises(InvalidArgument, match="another size"):
        detector.check_network(digits.model, larger)
    with pytest.raises(InvalidArgument, match="another size"):
        detector.score(look(larger))


@pytest.mark.parametrize("name", ["max-probability", "logits", "activations"])
def test_cheap_baselines_fit_the_same_detector(digits, name):
    x, y = digits.test_x[:60], digits.test_y[:60]
    clean = baseline_features(digits.model, x, name)
    bad = baseline_features(digits.model, attack(digits.model, x, y, "ifgsm", EPS), name)
    scores = RouteDetector(trees=20).fit(clean[:30], bad[:30]).score(bad[30:])
    assert scores.shape == (30,)
    if name == "max-probability":
        torch.testing.assert_close(clean.vector()[:, 0], 1 - digits.model(x).softmax(1).amax(1).detach())


def test_the_adapter_has_the_signature_of_art(digits):
    x, y = digits.test_x[:40], digits.test_y[:40]
    moved = attack(digits.model, x, y, "ifgsm", EPS)
    both = torch.cat([x, moved]).numpy()
    adapter = ArtDetector(digits.model, RouteDetector(trees=20), {"mode": "paper"})
    report, flagged = adapter.fit(both, np.repeat([0, 1], 40)).detect(both)
    assert flagged.dtype == bool
    assert flagged.shape == (80,)
    assert np.array_equal(flagged, report["scores"] > report["threshold"])
    assert flagged[40:].mean() > flagged[:40].mean()
    mixed = np.concatenate([both[:40], both[40:][::-1]])
    groups = np.concatenate([np.arange(40), np.arange(40)[::-1]])
    other = ArtDetector(digits.model, RouteDetector(trees=20), {"mode": "paper"})
    other.fit(mixed, np.repeat([0, 1], 40), groups=groups.tolist())
    fold = folds_by_group(groups, 0)
    assert all(not set(groups[train]) & set(groups[test]) for train, test in fold)
    assert np.isfinite(other.detector.out_of_fold_).all()
    with torch.no_grad():
        next(digits.model.parameters()).mul_(1.01)
    with pytest.raises(InvalidArgument, match="other weights"):
        other.detect(both)


def test_area_and_interval_against_scikit_learn():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    a, b = random.normal(size=60).round(1), (random.normal(size=80) + 1).round(1)
    expected = roc_auc_score(np.repeat([0, 1], [60, 80]), np.concatenate([a, b]))
    assert auroc(a, b) == pytest.approx(expected, abs=1e-12)
    report = detection_report(a, b)
    assert report.auroc_low < expected < report.auroc_high


@pytest.mark.parametrize("measure", [auroc, detection_report])
@pytest.mark.parametrize("bad", [[float("nan"), 1.0], [], [[0.5]], ["a"], None])
def test_scores_that_are_none_are_refused_by_name(measure, bad):
    good = torch.tensor([0.0, 1.0])
    with pytest.raises(InvalidArgument, match="clean"):
        measure(bad, good)
    with pytest.raises(InvalidArgument, match="adversarial"):
        measure(good, torch.tensor(bad) if bad and bad[0] != "a" else bad)


def test_settings_of_a_report_are_checked():
    scores = torch.tensor([0.0, 1.0])
    for words in ({"rate": 1.5}, {"resamples": 0}, {"clean_index": [0]}, {"adversarial_index": [0, 1, 2]}):
        with pytest.raises(InvalidArgument, match=next(iter(words))):
            detection_report(scores, scores, **words)
