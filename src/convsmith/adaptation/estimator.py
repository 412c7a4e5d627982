"""Adaptation as a scikit-learn estimator on arrays; accepts skada's ``sample_domain``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn

from convsmith.adaptation.adapt import adapt
from convsmith.data import from_arrays
from convsmith.errors import InvalidArgument


class PartialAdapter(ClassifierMixin, BaseEstimator):
    """Fit on labelled source and unlabelled target images given together, predict images of the target.

    ``fit(X, y, sample_domain=d)``: ``d > 0`` marks source images and ``d < 0`` target images, as in skada; without it,
    ``y = -1`` marks the target. Labels of target images are never read.

    Args:
        model: a classifier module with one logit per class, or a timm name.
        method: see `convsmith.adaptation.available`.
        validator: see `convsmith.adaptation.adapt`.
        steps: updates.
        lr: base learning rate.
        batch_size: images of each domain in a step.
        reference: ``"train"`` for guard and alarms, None to save their time.
        seed: of everything random.
        device: where to train.
        settings: of the method.

    Attributes set by fit: ``classes_``, ``result_`` (the `AdaptationResult`), ``class_weights_``.
    """

    def __init__(
        self,
        model: nn.Module | str = "cs_lenet",
        method: str = "san",
        validator: str | None = None,
        steps: int = 1000,
        lr: float = 0.03,
        batch_size: int = 64,
        reference: str | None = "train",
        seed: int = 0,
        device: str = "auto",
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
        self.settings = settings

    def fit(self, X: Any, y: Any, sample_domain: Any = None) -> PartialAdapter:
        """Adapt from the source rows of ``X`` [N, C, H, W] with labels ``y`` [N] to its target rows."""
        X, y = np.asarray(X), np.asarray(y)
        if len(X) != len(y):
            raise InvalidArgument("one label per image", given=f"{len(X)} images, {len(y)} labels")
        target = (y == -1) if sample_domain is None else (np.asarray(sample_domain) < 0)
        if len(target) != len(X) or not target.any() or target.all():
            raise InvalidArgument(
                "fit needs source and target images",
                argument="sample_domain > 0 for the source, < 0 for the target, or y = -1 for the target",
                given=f"{int((~target).sum())} source and {int(target.sum())} target images",
            )
        self.classes_, numbers = np.unique(y[~target], return_inverse=True)
        names = [str(c) for c in self.classes_]
        source = from_arrays(X[~target], numbers, name="source", classes=names)
        description = source.description
        self.mean_, self.std_ = np.asarray(description.mean), np.asarray(description.std)
        self.result_ = adapt(
            self.model,
            source,
            from_arrays(X[target], name="target"),
            method=self.method,
            validator=self.validator,
            steps=self.steps,
            lr=self.lr,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
            reference=self.reference,
            **(self.settings or {}),
        )
        weights = self.result_.class_weights
        self.class_weights_ = None if weights is None else weights.numpy()
        return self

    def predict_proba(self, X: Any, sample_domain: Any = None) -> np.ndarray:
        """Return calibrated probabilities [N, K] of images ``X``, columns in the order of ``classes_``."""
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "result_")
        images = from_arrays(X, name="images").with_normalisation(self.mean_.tolist(), self.std_.tolist())
        model = self.result_.model
        device = next(model.parameters()).device
        parts = []
        with torch.no_grad():
            for first in range(0, len(images), 512):
                batch = images.fetch(range(first, min(first + 512, len(images))))
                logits = model(batch.images.to(device)).float() / self.result_.predictions.temperature
                parts.append(logits.softmax(1).cpu())
        return torch.cat(parts).numpy()

    def predict(self, X: Any, sample_domain: Any = None) -> np.ndarray:
        """Return the class [N] of images ``X``, in the labels that ``fit`` was given."""
        p = self.predict_proba(X)
        return self.classes_[p.argmax(1)]
