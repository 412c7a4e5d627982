"""Exported trees score exactly as scikit-learn does, before and after the disk."""

import numpy as np
import pytest

from convsmith.errors import InvalidArgument
from convsmith.interpretation.trees import CLASSIFIERS, export_trees, load_trees, make_classifier, save_trees


def data(seed=0, rows=80):
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, rows)
    return (random.normal(size=(rows, 12)) + 0.7 * y[:, None]).astype(np.float32), y


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_equal_scikit_learn(kind, seed, tmp_path):
    x, y = data(seed)
    fitted = make_classifier(kind, seed, trees=30).fit(x, y)
    ensemble = export_trees(kind, fitted)
    other, _ = data(seed + 10, 200)
    expected = fitted.predict_proba(other)[:, 1]
    np.testing.assert_allclose(ensemble.score(other), expected, rtol=0, atol=1e-12)
    save_trees(tmp_path / "t.safetensors", ensemble, {"note": "x"})
    loaded, header = load_trees(tmp_path / "t.safetensors")
    assert np.array_equal(loaded.score(other), ensemble.score(other))
    assert header["note"] == "x"


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_two_rows_are_enough(kind):
    x, y = np.asarray([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32), np.asarray([0, 1])
    fitted = make_classifier(kind, 0, trees=5)
    if kind == "gradient-boosting":
        fitted.subsample = 1.0
    fitted.fit(x, y)
    np.testing.assert_allclose(export_trees(kind, fitted).score(x), fitted.predict_proba(x)[:, 1], atol=1e-12)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="no such"):
        load_trees(tmp_path / "missing.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"abc")
    with pytest.raises(InvalidArgument, match="safetensors"):
        load_trees(tmp_path / "broken.safetensors")
    with pytest.raises(InvalidArgument, match="random-forest"):
        make_classifier("random-forrest", 0)
