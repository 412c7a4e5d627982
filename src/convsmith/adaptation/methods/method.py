"""What every adaptation method shares: its settings, what it may look at, and the registry of methods."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.adaptation.evaluation.features import Look, Normalisation, classifier_of, look
from convsmith.adaptation.losses.reversal import ramp
from convsmith.data.batch import Batch, DomainBatch
from convsmith.errors import InvalidArgument, close_matches
from convsmith.registry import Registry
from convsmith.training.task import Losses, Task


@dataclass(frozen=True)
class Common:
    """Settings of every method.

    Args:
        normalisation: batch-norm statistics of source and target ``"joint"`` or ``"separate"`` (see `look`).
        head_lr: learning rate of the classifier, times the base rate (10 for a new head on a pretrained network).
        adversary_lr: the same for discriminators and other layers that are not part of the model.
    """

    normalisation: Normalisation = "joint"
    head_lr: float = 1.0
    adversary_lr: float = 1.0

    def __post_init__(self) -> None:
        if self.normalisation not in ("joint", "separate"):
            raise InvalidArgument("normalisation is joint or separate", given=repr(self.normalisation))
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not value >= 0:
                raise InvalidArgument("coefficients are finite and not negative", argument=field.name, given=value)


@dataclass(frozen=True)
class Domains:
    """What a method may look at besides its batches: all images of both domains, in a fixed order.

    Target labels are -1. ``steps`` is the planned length of the training, for ramps and warm-ups.
    """

    source: Iterable[Batch]
    target: Iterable[Batch]
    classes: int
    steps: int


class DomainTask(Task):
    """A method: the model, the layers it trains beside it, and the loss of a `DomainBatch`.

    ``examine`` is set by `adapt`: it measures the model on held-out source and unlabelled target images.
    """

    primary = "selection"

    def __init__(self, model: nn.Module, domains: Domains, settings: Common) -> None:
        super().__init__()
        self.model, self.domains, self.common = model, domains, settings
        self.classes, self.features = domains.classes, classifier_of(model).in_features
        self.examine: Callable[[nn.Module, Iterable[Batch]], dict[str, float]] | None = None

    @abstractmethod
    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return the losses of one pair of batches."""

    def look(self, batch: DomainBatch) -> Look:
        """Return features and logits of both domains, normalised as the settings say."""
        return look(self.model, batch, self.common.normalisation)

    def strength(self, step: int, upper: float, share: float, start: int = 0) -> float:
        """Return the reversal's strength at ``step``: 0 up to ``start``, then a ramp over ``share`` of what is left."""
        return ramp(step, max(1, round(share * (self.domains.steps - start))), upper=upper, start=start)

    def class_weights(self) -> Tensor | None:
        """Return the weights [K] the method gives the source classes, None if it has none."""
        return None

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return accuracy on held-out source ``batches``, and all that `adapt` wants to know."""
        if self.examine is not None:
            return self.examine(self.model, batches)
        right = total = 0
        with torch.no_grad():
            for batch in batches:
                right += int((self.model(batch.images).argmax(1) == batch.labels).sum())
                total += len(batch)
        return {"source_accuracy": right / total, "selection": right / total}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return three groups: the body, the classifier, and everything beside the model."""
        head = {id(p) for p in classifier_of(self.model).parameters()}
        inside = {id(p) for p in self.model.parameters()}
        body = [p for p in self.model.parameters() if p.requires_grad and id(p) not in head]
        return [
            {"params": body, "lr": lr},
            {
                "params": [p for p in self.model.parameters() if p.requires_grad and id(p) in head],
                "lr": lr * self.common.head_lr,
            },
            {
                "params": [p for p in self.parameters() if p.requires_grad and id(p) not in inside],
                "lr": lr * self.common.adversary_lr,
            },
        ]


METHODS: Registry[type[DomainTask]] = Registry("adaptation method", "convsmith.adaptation.methods")


def available() -> list[str]:
    """Return the names of all methods."""
    return METHODS.names()


def method_settings(method: str, overrides: Mapping[str, Any]) -> Common:
    """Return the settings of ``method`` with ``overrides``; a field of a nested group is named without its group.

    ``preset`` (SAN only) replaces the whole form first.

    Raises:
        InvalidArgument: unknown method or setting, with close matches.
    """
    settings = METHODS.entry(method).traits["settings"]()
    rest = dict(overrides)
    if "preset" in rest and hasattr(settings, "form"):
        from convsmith.adaptation.losses.selective import preset

        settings = replace(settings, form=preset(rest.pop("preset")))
    known = setting_names(settings)
    for name in rest:
        if name not in known:
            raise InvalidArgument(
                f"the method {method!r} has no such setting", given=repr(name), hint=close_matches(name, known)
            )
    result: Common = _replaced(settings, rest)
    return result


def setting_names(settings: Any) -> list[str]:
    """Return the names of all settings, nested ones without their group."""
    names = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        names += setting_names(value) if is_dataclass(value) else [field.name]
    return names


def _replaced(settings: Any, values: Mapping[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            changes[field.name] = _replaced(value, values)
        elif field.name in values:
            changes[field.name] = values[field.name]
    return replace(settings, **changes)
