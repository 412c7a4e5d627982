"""Adaptation as a scikit-learn estimator on arrays; accepts skada's ``sample_domain``."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted
from torch import nn

from convsmith import arguments
from convsmith.adaptation.adapt import adapt
from convsmith.adaptation.inputs import rows_at_once
from convsmith.data import Loader, from_arrays
from convsmith.errors import InvalidArgument
from convsmith.inspection.features import extract_features


class PartialAdapter(ClassifierMixin, BaseEstimator):
    """Fit on labelled source and unlabelled target images given together, predict images of the target.

    ``fit(X, y, sample_domain=d)``: ``d > 0`` marks source images and ``d < 0`` target images, as in skada; without it,
    ``y = -1`` marks the target. Labels of target images are never read. Images are [N, C, H, W], or rows of pixels
    [N, C H W] with ``image_shape``, as pipelines of scikit-learn hand them on; floats outside [0, 1] at ``fit`` (behind
    a StandardScaler) are taken as they are. With metadata routing enabled, ``sample_domain`` is requested by default.

    Args:
        model: a classifier module, or a timm name.
        method: see `convsmith.adaptation.available`.
        validator: see `convsmith.adaptation.adapt`.
        steps: updates.
        lr: base learning rate.
        batch_size: images of each domain in a step.
        reference: ``"train"`` for guard and alarms, None to save their time.
        seed: of everything random.
        device: where to train.
        image_shape: (C, H, W) of rows of pixels.
        settings: of the method.

    Attributes set by fit: ``classes_``, ``result_`` (the `AdaptationResult`), ``class_weights_``.
    """

    __metadata_request__fit: ClassVar = {"sample_domain": True}
    __metadata_request__predict: ClassVar = {"sample_domain": True}
    __metadata_request__predict_proba: ClassVar = {"sample_domain": True}
    __metadata_request__score: ClassVar = {"sample_domain": True}

    def __init__(
        self,
        model: nn.Module | str = "cs_lenet",
        *,
        method: str = "san",
        validator: str | None = None,
        steps: int = 1000,
        lr: float = 0.03,
        batch_size: int = 64,
        reference: str | None = "train",
        seed: int = 0,
        device: str = "auto",
        image_shape: tuple[int, int, int] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.method = method
        self.validator = validator
        self.steps = steps
        self.lr = lr
        self.batch_size = batch_size
        self.reference = reference
        self.seed = seed
        self.device = device
        self.image_shape = image_shape
        self.settings = settings

    def fit(self, X: Any, y: Any, sample_domain: Any = None) -> PartialAdapter:
        """Adapt from the source rows of ``X`` with labels ``y`` [N] to its target rows."""
        own, settings = self.get_params(deep=False), arguments.of_type("settings", self.settings, dict | None) or {}
        arguments.of_type("image_shape", self.image_shape, tuple[int, int, int] | None)
        for name in sorted(own.keys() & settings.keys()):
            rule, hint = "this is an argument of its own, no setting of the method", f"PartialAdapter({name}=...)"
            raise InvalidArgument(rule, argument="settings", given=name, hint=hint)
        X, y = self._images(X), np.asarray(y)
        if y.shape != (len(X),):
            raise InvalidArgument("one label per image", argument="y", given=f"{len(X)} images, labels {y.shape}")
        target = (y == -1) if sample_domain is None else _domains(sample_domain, len(X)) < 0
        if not target.any() or target.all():
            argument = "sample_domain > 0 for the source, < 0 for the target, or y = -1 for the target"
            given = f"{int((~target).sum())} source and {int(target.sum())} target images"
            raise InvalidArgument("fit needs source and target images", argument=argument, given=given)
        self.classes_, numbers = np.unique(y[~target], return_inverse=True)
        names = [str(c) for c in self.classes_]
        self.normalised_ = X.dtype.kind == "f" and bool((X.min() < 0) | (X.max() > 1))
        source = from_arrays(X[~target], numbers, name="source", classes=names, normalised=self.normalised_)
        description = source.description
        self.mean_, self.std_ = np.asarray(description.mean), np.asarray(description.std)
        whole = from_arrays(X[target], name="target", normalised=self.normalised_)
        trained = {name: own[name] for name in own if name not in ("model", "image_shape", "settings")}
        self.result_ = adapt(self.model, source, whole, **trained, **settings)
        if self.result_.interrupted:
            del self.result_
            raise KeyboardInterrupt
        weights = self.result_.class_weights
        self.class_weights_ = None if weights is None else weights.numpy()
        return self

    def predict_proba(self, X: Any, sample_domain: Any = None) -> np.ndarray:
        """Return calibrated probabilities [N, K] of images ``X``, columns in the order of ``classes_``.

        Images of both domains are predicted alike; ``sample_domain`` is checked and taken for pipelines' sake.
        """
        check_is_fitted(self, "result_")
        X = self._images(X)
        if sample_domain is not None:
            _domains(sample_domain, len(X))
        images = from_arrays(X, name="images", normalised=self.normalised_)
        images = images.with_normalisation(self.mean_.tolist(), self.std_.tolist())
        logits = extract_features(self.result_.model, Loader(images, rows_at_once(images))).logits
        return (logits / self.result_.predictions.temperature).softmax(1).numpy()

    def predict(self, X: Any, sample_domain: Any = None) -> np.ndarray:
        """Return the class [N] of images ``X``, in the labels that ``fit`` was given."""
        p = self.predict_proba(X, sample_domain)
        return self.classes_[p.argmax(1)]

    def score(self, X: Any, y: Any, sample_domain: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy on ``X`` with labels ``y``; with ``sample_domain``, on its target images alone."""
        X, y = self._images(X), np.asarray(y)
        rows = np.ones(len(X), dtype=bool) if sample_domain is None else _domains(sample_domain, len(X)) < 0
        if not rows.any():
            rule, hint = "the score is of target images", "leave sample_domain out to score all images"
            raise InvalidArgument(rule, argument="sample_domain", given="none below 0", hint=hint)
        weights = None if sample_weight is None else np.asarray(sample_weight)[rows]
        return float(accuracy_score(y[rows], self.predict(X[rows]), sample_weight=weights))

    def _images(self, X: Any) -> np.ndarray:
        images = np.asarray(X)
        if images.ndim == 0:
            raise InvalidArgument("images are an array [N, C, H, W]", argument="X", given=arguments.spelled(X))
        if images.ndim == 2:
            shape = self.image_shape
            if shape is None or int(np.prod(shape)) != images.shape[1]:
                rule, given = "rows of pixels need the shape of an image", f"{shape} for rows of {images.shape[1]}"
                hint = "image_shape=(channels, height, width)"
                raise InvalidArgument(rule, argument="image_shape", given=given, hint=hint)
            images = images.reshape(len(images), *shape)
        return images


def _domains(sample_domain: Any, count: int) -> np.ndarray:
    """Return the domains [N] as numbers: above 0 for the source, below 0 for the target."""
    domains = np.asarray(sample_domain)
    if domains.shape != (count,) or domains.dtype.kind not in "iuf" or bool((domains == 0).any()):
        rule, argument = "one number per image, above 0 for the source and below 0 for the target", "sample_domain"
        raise InvalidArgument(rule, argument=argument, given=f"{domains.dtype} {domains.shape} for {count} images")
    return domains
