"""Fitted tree ensembles of scikit-learn as plain arrays: scored without pickle, exactly as scikit-learn scores them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convsmith.arguments import one_of
from convsmith.errors import InvalidArgument, refusing
from convsmith.files import replacing

CLASSIFIERS = ("random-forest", "adaboost", "gradient-boosting")
_ARRAYS = ("left", "right", "feature", "threshold", "value", "roots", "weight")


@dataclass(frozen=True)
class TreeEnsemble:
    """Binary trees in one table. ``kind`` says how leaf values make a score in [0, 1].

    ``left``, ``right`` int64 child numbers (-1 at a leaf), ``feature`` int64, ``threshold`` float64 (go left if
    float32(x) <= threshold), ``value`` float64 of each node: the share of adversarial rows (random forest), the
    predicted class 0 or 1 (AdaBoost), the raw addend (gradient boosting). ``roots`` of the trees, ``weight`` by tree,
    ``base`` the start of the sum.
    """

    kind: str
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    value: NDArray[np.float64]
    roots: NDArray[np.int64]
    weight: NDArray[np.float64]
    base: float

    def score(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Return scores [N] in [0, 1] of features [N, F]: higher is more adversarial.

        Random forest: mean of the leaves' shares. Gradient boosting: logistic of base + learning rate x leaves.
        AdaBoost: logistic of twice the weighted vote, rescaled to [-1, 1] (as scikit-learn's predict_proba).
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        total = np.full(len(x), self.base)
        for root, weight in zip(self.roots, self.weight, strict=True):
            leaf = self.value[self._leaves(x, int(root))]
            if self.kind == "random-forest":
                total += leaf
            elif self.kind == "adaboost":
                total += np.where(leaf > 0.5, weight, -weight)
            else:
                total += weight * leaf
        if self.kind == "random-forest":
            return total / len(self.roots)
        if self.kind == "adaboost":
            total *= 2 / self.weight.sum()
        return 1 / (1 + np.exp(-total))

    def _leaves(self, x: NDArray[np.float32], root: int) -> NDArray[np.int64]:
        node = np.full(len(x), root, dtype=np.int64)
        rows = np.arange(len(x))
        while len(rows):
            here = node[rows]
            inner = self.left[here] >= 0
            rows, here = rows[inner], here[inner]
            goes_left = x[rows, self.feature[here]] <= self.threshold[here]
            node[rows] = np.where(goes_left, self.left[here], self.right[here])
        return node


def fit_trees(kind: str, x: NDArray[Any], y: NDArray[Any], seed: int, trees: int = 100) -> TreeEnsemble:
    """Fit scikit-learn's classifier ``kind`` on features [N, F] and labels [N] in {0, 1} and return its arrays."""
    classifier, features = make_classifier(kind, seed, trees), np.asarray(x, dtype=np.float32)
    hint = "a larger epsilon, other features, or a random forest"
    with refusing("the features do not tell the two sides apart", ValueError, argument=kind, hint=hint):
        classifier.fit(features, y)
    return export_trees(kind, classifier)


def make_classifier(kind: str, seed: int, trees: int = 100) -> Any:
    """Return the unfitted scikit-learn classifier."""
    one_of("classifier", kind, CLASSIFIERS)
    from sklearn.ensemble import AdaBoostClassifier, GradientBoostingClassifier, RandomForestClassifier

    if kind == "random-forest":
        return RandomForestClassifier(trees, random_state=seed, n_jobs=1)
    if kind == "adaboost":
        return AdaBoostClassifier(n_estimators=trees, random_state=seed)
    return GradientBoostingClassifier(n_estimators=trees, random_state=seed, subsample=0.8, max_features="sqrt")


def export_trees(kind: str, fitted: Any) -> TreeEnsemble:
    """Copy the trees of a fitted scikit-learn ensemble of two classes (0, 1)."""
    if kind == "gradient-boosting":
        estimators = [row[0] for row in fitted.estimators_]
        weight = np.full(len(estimators), float(fitted.learning_rate))
        positive = float(fitted.init_.class_prior_[1])
        base = float(np.log(positive / (1 - positive)))
    else:
        estimators = list(fitted.estimators_)
        weights = getattr(fitted, "estimator_weights_", None)
        weight = np.ones(len(estimators)) if weights is None else np.asarray(weights[: len(estimators)], dtype=float)
        base = 0.0
    trees = [estimator.tree_ for estimator in estimators]
    roots = np.cumsum([0, *(tree.node_count for tree in trees)], dtype=np.int64)[:-1]

    def joined(parts: Iterable[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
        return np.concatenate([*parts]).astype(dtype)

    def children(name: str) -> NDArray[np.int64]:
        own = [getattr(tree, name) for tree in trees]
        return joined((np.where(c >= 0, c + root, -1) for c, root in zip(own, roots, strict=True)), np.int64)

    return TreeEnsemble(
        kind,
        children("children_left"),
        children("children_right"),
        joined((tree.feature for tree in trees), np.int64),
        joined((tree.threshold for tree in trees), np.float64),
        joined((_node_values(kind, estimator) for estimator in estimators), np.float64),
        roots,
        weight,
        base,
    )


def _node_values(kind: str, estimator: Any) -> NDArray[Any]:
    raw = estimator.tree_.value[:, 0, :]
    if kind == "gradient-boosting":
        return raw[:, 0]
    if len(estimator.classes_) == 1:  # a bootstrap sample of one class
        return np.full(len(raw), float(estimator.classes_[0]))
    return raw.argmax(1) if kind == "adaboost" else raw[:, 1] / raw.sum(1)


def save_trees(path: Path, ensemble: TreeEnsemble, metadata: dict[str, Any]) -> None:
    """Write one safetensors file with the arrays, and ``metadata`` (JSON values) in its header."""
    from safetensors.numpy import save_file

    header = {**metadata, "kind": ensemble.kind, "base": ensemble.base}
    with replacing(path) as draft:
        save_file({name: getattr(ensemble, name) for name in _ARRAYS}, draft, {"convsmith": json.dumps(header)})


def load_trees(path: Path) -> tuple[TreeEnsemble, dict[str, Any]]:
    """Read what `save_trees` wrote."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InvalidArgument("there is no such detector file", argument=path)
    rule = "the file is no complete safetensors file"
    with refusing(rule, SafetensorError, argument=path), safe_open(path, framework="numpy") as file:
        header = json.loads((file.metadata() or {}).get("convsmith", "null"))
        if header is None or "kind" not in header:
            raise InvalidArgument("the file holds no detector", argument=path, hint="expected RouteDetector.save")
        arrays = {name: file.get_tensor(name) for name in _ARRAYS}
    return TreeEnsemble(kind=header["kind"], base=header["base"], **arrays), header
