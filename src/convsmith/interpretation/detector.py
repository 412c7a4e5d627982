"""Is this input adversarial? A small classifier on routes, with a threshold set by a false-positive rate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convsmith import arguments
from convsmith.errors import InvalidArgument
from convsmith.inspection.modes import unwrap
from convsmith.interpretation.find import find_routes
from convsmith.interpretation.routes import Routes
from convsmith.interpretation.trees import fit_trees, load_trees, save_trees

#: what a detector is made with and what fitting finds, as its file names them
_GIVEN, _FOUND = ("layers", "seed", "false_positive_rate", "trees"), ("threshold", "widths", "settings", "network")


class RouteDetector:
    """Score routes (or anything of their shape) for being adversarial.

    ``classifier``: ``"random-forest"``, ``"adaboost"``, ``"gradient-boosting"`` of scikit-learn. ``layers`` restricts
    the features. ``false_positive_rate`` sets the threshold of `predict` on clean images that were not used for the
    trees that score them (cross-fitting, split by image).

    Wang et al., CVPR 2018, section 4.3. Differs from the paper's released code: every image starts its search with
    fresh solver state, area under the curve is computed from scores, and an image's clean and adversarial versions
    never sit on both sides of a split.
    """

    def __init__(
        self,
        classifier: str = "random-forest",
        layers: Sequence[str] | None = None,
        seed: int = 0,
        *,
        false_positive_rate: float = 0.05,
        trees: int = 100,
    ) -> None:
        self.classifier, self.layers, self.seed = classifier, layers, seed
        self.false_positive_rate, self.trees = false_positive_rate, trees

    @arguments.checked
    def fit(
        self,
        clean: Routes,
        adversarial: Routes,
        groups: tuple[Sequence[int] | Tensor, Sequence[int] | Tensor] | None = None,
        *,
        network: nn.Module | None = None,
    ) -> RouteDetector:
        """Fit on routes of clean and adversarial images; return self.

        ``network`` they were found on: `check_network` then refuses every other one, also after `save` and `load`.

        ``groups``: image numbers of the clean and of the adversarial rows. Default: the routes' ``index``; where both
        sides are numbered 0..n-1 with equal length, row i of one is taken as a version of row i of the other.

        Sets ``ensemble_``, ``threshold_``, ``widths_``, ``settings_``, ``network_`` and ``out_of_fold_`` (scores [N] of
        all training rows, clean first, each from trees that saw no version of its image).
        """
        arguments.number("false_positive_rate", self.false_positive_rate, above=0, below=1)
        arguments.integer("trees", self.trees, least=1)
        arguments.integer("seed", self.seed, least=0, most=2**32 - 1)
        if len(clean) == 0 or len(adversarial) == 0:
            rule, given = "a detector needs clean and adversarial routes", f"{len(clean)}, {len(adversarial)}"
            raise InvalidArgument(rule, given=given)
        Routes.concatenate([clean[:1], adversarial[:1]])  # the same layers and settings, or an error
        x = np.concatenate([self._features(clean), self._features(adversarial)])
        y = np.concatenate([np.zeros(len(clean), dtype=int), np.ones(len(adversarial), dtype=int)])
        first, second = (clean.index.cpu(), adversarial.index.cpu()) if groups is None else groups
        group = np.concatenate([_index("groups", first, len(clean)), _index("groups", second, len(adversarial))])
        self.widths_ = self._widths(clean)
        self.settings_ = dict(clean.settings)
        self.out_of_fold_ = self._cross_fit(x, y, group)
        self.threshold_ = _threshold(self.out_of_fold_[y == 0], self.false_positive_rate)
        self.ensemble_ = fit_trees(self.classifier, x, y, self.seed, self.trees)
        self.network_ = None if network is None else fingerprint(network)
        return self

    @arguments.checked
    def check_network(self, network: nn.Module, images: Tensor | None = None) -> None:
        """Refuse a network with other weights than the one it was fitted on, where that was named.

        ``images`` [B, C, H, W] that are to be scored, if given: those of another size than fitted on are refused, too.
        """
        self._check_fitted()
        if images is not None:
            self._check_size([*images.shape[1:]])
        if self.network_ is not None and fingerprint(network) != self.network_:
            rule = "the detector was fitted on a network with other weights"
            hint = "fit a detector of its own for this network"
            raise InvalidArgument(rule, argument="network", given=type(unwrap(network)).__name__, hint=hint)

    @arguments.checked
    def score(self, routes: Routes) -> Tensor:
        """Return [B] float64 in [0, 1]: higher means more adversarial."""
        self._check_fitted()
        widths = self._widths(routes)
        if widths != self.widths_:
            raise InvalidArgument("the detector was fitted on other layers", argument=self.widths_, given=widths)
        self._check_size(routes.settings.get("image_size"))
        if dict(routes.settings) != self.settings_:
            rule, hint = "the detector was fitted on routes found with other settings", "find them with the same ones"
            raise InvalidArgument(rule, argument=self.settings_, given=dict(routes.settings), hint=hint)
        return torch.from_numpy(self.ensemble_.score(self._features(routes)))

    @arguments.checked
    def predict(self, routes: Routes) -> Tensor:
        """Return [B] bool: the score lies above the threshold."""
        return self.score(routes) > self.threshold_

    @arguments.checked
    def set_threshold(self, clean: Routes, false_positive_rate: float) -> RouteDetector:
        """Set the threshold on clean routes that were not used in `fit`; return self."""
        arguments.number("false_positive_rate", false_positive_rate, above=0, below=1)
        self.threshold_ = _threshold(_scores("clean", self.score(clean)), false_positive_rate)
        self.false_positive_rate = false_positive_rate
        return self

    @arguments.checked
    def save(self, path: str | Path) -> Path:
        """Write one safetensors file (arrays of the trees, JSON header); scores after `load` are equal bit for bit."""
        self._check_fitted()
        header = {name: getattr(self, name) for name in _GIVEN}
        header |= {name: getattr(self, f"{name}_") for name in _FOUND}
        save_trees(Path(path), self.ensemble_, header)
        return Path(path)

    @classmethod
    @arguments.checked
    def load(cls, path: str | Path) -> RouteDetector:
        """Read what `save` wrote; nothing in the file is executed."""
        ensemble, header = load_trees(Path(path))
        detector = cls(ensemble.kind, **{name: header[name] for name in _GIVEN})
        detector.ensemble_ = ensemble
        for name in _FOUND:
            setattr(detector, f"{name}_", header[name])
        return detector

    def _features(self, routes: Routes) -> NDArray[np.float32]:
        return routes.vector(self.layers).detach().cpu().numpy().astype(np.float32)

    def _widths(self, routes: Routes) -> dict[str, int]:
        return {name: g.shape[1] for name, g in routes.gates.items() if self.layers is None or name in self.layers}

    def _cross_fit(self, x: NDArray[Any], y: NDArray[Any], group: NDArray[Any]) -> NDArray[np.float64]:
        scores = np.full(len(y), np.nan)
        for train, test in folds_by_group(group, self.seed):
            if len(set(y[train])) == 2:
                scores[test] = fit_trees(self.classifier, x[train], y[train], self.seed, self.trees).score(x[test])
        if np.isnan(scores).any():
            rule = "the threshold needs clean and adversarial rows of at least two images"
            raise InvalidArgument(rule, given=f"{len(set(group.tolist()))} images")
        return scores

    def _check_fitted(self) -> None:
        if not hasattr(self, "ensemble_"):
            raise InvalidArgument("the detector is not fitted", hint="call fit(clean, adversarial) or load(path) first")

    def _check_size(self, size: list[int] | None) -> None:
        fitted = self.settings_.get("image_size")
        if size != fitted:
            rule, hint = "the detector was fitted on images of another size", "give it images of that size"
            raise InvalidArgument(rule, argument=f"images of {fitted}", given=size, hint=hint)


def fingerprint(network: nn.Module, *more: Tensor) -> str:
    """Return a digest of all weights and buffers of a network, and of more tensors."""
    found = hashlib.sha256()
    for name, value in [*unwrap(network).state_dict().items(), *((str(place), one) for place, one in enumerate(more))]:
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class ArtDetector:
    """The detector behind the signature of adversarial-robustness-toolbox's evasion detectors (numpy in, numpy out).

    ``find`` holds the settings of `find_routes`; images are [N, C, H, W] as the model takes them.
    """

    model: nn.Module
    detector: RouteDetector
    find: Mapping[str, Any]

    def fit(
        self, x: NDArray[Any], y: NDArray[Any], groups: Sequence[int] | None = None, **_settings: Any
    ) -> ArtDetector:
        """Fit on images ``x`` with ``y`` [N] (or one-hot [N, 2]): 1 is adversarial; return self.

        ``groups`` [N]: image numbers; versions of one image share a number. Default: as many attacked as clean images
        are taken as their versions in the same order, else every row as an image of its own.
        """
        y = np.asarray(y)
        y = y.argmax(1) if y.ndim == 2 else y
        images = torch.from_numpy(np.asarray(x, dtype=np.float32))
        names = _index("groups", groups, len(y))
        clean, adversarial = (find_routes(self.model, images[y == side], **self.find) for side in (0, 1))
        paired = groups is None and len(clean) == len(adversarial)
        sides = None if paired else (names[y == 0].tolist(), names[y == 1].tolist())
        self.detector.fit(clean, adversarial, sides, network=self.model)
        return self

    def detect(self, x: NDArray[Any], **_settings: Any) -> tuple[dict[str, Any], NDArray[np.bool_]]:
        """Return a report (scores and threshold) and which images are adversarial, bool [N]."""
        images = torch.from_numpy(np.asarray(x, dtype=np.float32))
        self.detector.check_network(self.model, images)
        scores = self.detector.score(find_routes(self.model, images, **self.find)).numpy()
        report = {"scores": scores, "threshold": self.detector.threshold_}
        return report, scores > self.detector.threshold_


@dataclass(frozen=True)
class DetectionReport:
    """Area under the ROC curve and hit rate at 5 % (or ``rate``) false positives, with 95 % intervals by image."""

    auroc: float
    auroc_low: float
    auroc_high: float
    hit_rate: float
    hit_low: float
    hit_high: float
    rate: float
    images: int


@arguments.checked
def detection_report(
    clean: Tensor | NDArray[Any],
    adversarial: Tensor | NDArray[Any],
    *,
    clean_index: Sequence[int] | Tensor | None = None,
    adversarial_index: Sequence[int] | Tensor | None = None,
    rate: float = 0.05,
    resamples: int = 500,
    seed: int = 0,
) -> DetectionReport:
    """Compare scores of clean and adversarial rows; images (not rows) are resampled for the percentile intervals.

    Examples:
        >>> report = detection_report(torch.zeros(20), torch.ones(20))
    """
    a, b = _scores("clean", clean), _scores("adversarial", adversarial)
    arguments.number("rate", rate, above=0, below=1)
    arguments.integer("resamples", resamples, least=1)
    arguments.integer("seed", seed, least=0)
    ga, gb = _index("clean_index", clean_index, len(a)), _index("adversarial_index", adversarial_index, len(b))
    images = np.unique(np.concatenate([ga, gb]))
    rows_a, rows_b = ([np.flatnonzero(g == i) for i in images] for g in (ga, gb))
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        pick = random.integers(0, len(images), len(images))
        p = np.concatenate([rows_a[i] for i in pick])
        q = np.concatenate([rows_b[i] for i in pick])
        if len(p) and len(q):
            draws.append((auroc(a[p], b[q]), hits(a[p], b[q], rate)))
    low, high = np.percentile(np.asarray(draws), [2.5, 97.5], axis=0)
    area, rate_hit = auroc(a, b), hits(a, b, rate)
    return DetectionReport(
        area, float(low[0]), float(high[0]), rate_hit, float(low[1]), float(high[1]), rate, len(images)
    )


def auroc(clean: Tensor | NDArray[Any], adversarial: Tensor | NDArray[Any]) -> float:
    """Area under the ROC curve from scores [N] and [M]: P(adversarial > clean) + P(equal) / 2 (Mann-Whitney).

    Raises `InvalidArgument` where a side is empty or holds what is not a number.

    Examples:
        >>> auroc(np.array([0.1, 0.2]), np.array([0.3, 0.4]))
        1.0
    """
    clean, adversarial = _scores("clean", clean), _scores("adversarial", adversarial)
    ordered = np.sort(clean)
    below = np.searchsorted(ordered, adversarial, side="left")
    upto = np.searchsorted(ordered, adversarial, side="right")
    return float((below + upto).mean() / (2 * len(clean)))


def _scores(name: str, value: Any) -> NDArray[np.float64]:
    try:
        scores = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=float)
    except (TypeError, ValueError):
        scores = np.empty(0)
    if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
        rule = f"{name} must be scores, one number a row and none of them NaN"
        raise InvalidArgument(rule, argument=name, given=arguments.spelled(value))
    return scores


def _index(name: str, index: Sequence[int] | Tensor | None, rows: int) -> NDArray[Any]:
    found = np.arange(rows) if index is None else np.asarray(index)
    if found.shape != (rows,):
        raise InvalidArgument(f"{name} must name the image of every row", argument=name, given=f"{found.shape}, {rows}")
    return found


def hits(clean: NDArray[Any], adversarial: NDArray[Any], rate: float = 0.05) -> float:
    """Share of adversarial rows above the threshold that at most ``rate`` of the clean rows exceed."""
    return float((adversarial > _threshold(clean, rate)).mean())


def folds_by_group(group: NDArray[Any], seed: int, folds: int = 5) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Split rows into (train, test) parts such that all rows of one image lie on the same side."""
    names = np.unique(group)
    names = names[np.random.default_rng(seed).permutation(len(names))]
    parts = np.array_split(names, min(folds, len(names)))
    masks = [np.isin(group, part) for part in parts]
    return [(np.flatnonzero(~mask), np.flatnonzero(mask)) for mask in masks]


def _threshold(clean: NDArray[Any], rate: float) -> float:
    """Smallest score that at most ``rate`` of the clean rows exceed."""
    ordered = np.sort(clean)[::-1]
    return float(ordered[min(int(rate * len(ordered)), len(ordered) - 1)])
