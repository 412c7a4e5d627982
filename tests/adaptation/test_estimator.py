"""The scikit-learn face: parameters, masks, labels that are not numbers, skada's sample_domain."""

import signal

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from convsmith.adaptation.estimator import PartialAdapter
from convsmith.errors import InvalidArgument
from tests.adaptation.worlds import network, world


def arrays():
    source, target = world(n=100, m=60)
    X = np.concatenate([source.pixels(slice(None)).numpy(), target.pixels(slice(None)).numpy()])
    y = np.array([f"c{k}" for k in source.labels.tolist()] + ["c0"] * 60, dtype=object)
    return X, y, np.array([1] * 100 + [-2] * 60), target.labels.numpy()


def adapter(**changes):
    settings = {"hidden": (6,), "every": 5}
    base = {"steps": 60, "lr": 0.05, "batch_size": 12, "reference": None, "device": "cpu", "settings": settings}
    return PartialAdapter(network(), **{**base, **changes})


def test_fit_and_predict_with_sample_domain():
    X, y, domain, truth = arrays()
    fitted = adapter().fit(X, y, sample_domain=domain)
    assert fitted.classes_.tolist() == [f"c{k}" for k in range(5)]
    p = fitted.predict_proba(X[domain < 0])
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(p, fitted.result_.predictions.probabilities.numpy(), atol=1e-5)
    right = fitted.predict(X[domain < 0]) == np.array([f"c{k}" for k in truth])
    assert right.mean() > 0.7
    assert fitted.class_weights_.shape == (5,)
    assert fitted.score(X[domain > 0], y[domain > 0]) > 0.7


def test_target_labels_are_never_read():
    X, y, domain, _ = arrays()
    other = y.copy()
    other[domain < 0] = "c3"
    first = adapter(steps=10).fit(X, y, domain).predict_proba(X[:5])
    np.testing.assert_array_equal(first, adapter(steps=10).fit(X, other, domain).predict_proba(X[:5]))


def test_minus_one_marks_the_target():
    X, _, domain, _ = arrays()
    y = np.where(domain > 0, np.arange(160) % 5 * 10, -1)
    fitted = adapter(steps=5).fit(X, y)
    assert fitted.classes_.tolist() == [0, 10, 20, 30, 40]
    assert set(fitted.predict(X[:9])) <= {0, 10, 20, 30, 40}


def test_an_interrupted_fit_is_no_fit():
    X, y, domain, _ = arrays()
    stopped = adapter(settings={"progress": lambda done, total, note: signal.raise_signal(signal.SIGINT)}, method="dan")
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(X, y, sample_domain=domain)
    with pytest.raises(NotFittedError):
        stopped.predict(X)


def test_it_is_an_estimator():
    fresh = adapter(method="dann", settings={"hidden": (4,)})
    copied = clone(fresh)
    assert copied.get_params()["method"] == "dann"
    assert copied.set_params(steps=7).steps == 7
    with pytest.raises(NotFittedError):
        copied.predict(np.zeros((1, 1, 8, 8), dtype=np.float32))


def test_the_score_of_mixed_rows_is_that_of_the_target():
    X, y, domain, truth = arrays()
    fitted = adapter(steps=5).fit(X, y, domain)
    labels = y.copy()
    labels[domain < 0] = [f"c{k}" for k in truth]
    right = fitted.predict(X) == labels
    assert fitted.score(X, labels, sample_domain=domain) == right[domain < 0].mean()
    assert fitted.score(X, labels) == right.mean()
    weights = np.arange(160.0)
    expected = (right * weights)[domain < 0].sum() / weights[domain < 0].sum()
    assert fitted.score(X, labels, sample_domain=domain, sample_weight=weights) == pytest.approx(expected)
    with pytest.raises(InvalidArgument, match="target images"):
        fitted.score(X, labels, sample_domain=np.ones(160))


def test_a_pipeline_with_a_scaler_routes_the_domains_by_itself():
    X, y, domain, _ = arrays()
    rows = X.reshape(160, -1)
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(StandardScaler(), adapter(steps=30, image_shape=(1, 8, 8)))
        pipeline.fit(rows, y, sample_domain=domain)
        score = pipeline.score(rows, y, sample_domain=domain)
        predicted = pipeline.predict(rows, sample_domain=domain)
    scaled = StandardScaler().fit_transform(rows).reshape(160, 1, 8, 8).astype(np.float32)
    alone = adapter(steps=30).fit(scaled, y, domain)
    np.testing.assert_array_equal(predicted, alone.predict(scaled))
    assert score == (predicted == y)[domain < 0].mean()


def test_bad_input_is_one_clear_error():
    X, y, domain, _ = arrays()
    with pytest.raises(InvalidArgument, match="source and target images"):
        adapter().fit(X, y, np.ones(160))
    with pytest.raises(InvalidArgument, match="argument: sample_domain"):
        adapter().fit(X, y, np.zeros(160))
    with pytest.raises(InvalidArgument, match="argument: image_shape"):
        adapter().fit(X.reshape(160, -1), y, domain)
    with pytest.raises(InvalidArgument, match="one label per image"):
        adapter().fit(X, y[:-1], domain)
    with pytest.raises(InvalidArgument, match=r"argument: settings\n.*given: +validator"):
        adapter(settings={"hidden": (6,), "validator": "snd"}).fit(X, y, domain)


@pytest.mark.parametrize(
    ("changes", "word"), [({"settings": "dropout"}, "settings"), ({"image_shape": "8x8"}, "image_shape")]
)
def test_parameters_of_another_type_are_refused_by_name(changes, word):
    X, y, domain, _ = arrays()
    with pytest.raises(InvalidArgument, match=word):
        adapter(**changes).fit(X.reshape(len(X), -1), y, sample_domain=domain)
    with pytest.raises(InvalidArgument, match="images are an array"):
        adapter().fit(None, y, sample_domain=domain)
