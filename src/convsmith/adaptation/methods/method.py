"""What every adaptation method shares: its settings, what it may look at, and the registry of methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from convsmith import arguments
from convsmith.adaptation.evaluation.features import DomainFeatures, Normalisation, extract_domain_features
from convsmith.adaptation.losses.reversal import ramp
from convsmith.data.batch import Batch, DomainBatch
from convsmith.errors import InvalidArgument
from convsmith.inspection.features import classifier_of
from convsmith.registry import Registry, check_settings, setting_types
from convsmith.training.task import Losses, Task


@dataclass(frozen=True)
class MethodConfig:
    """Settings of every method.

    Args:
        normalisation: batch-norm statistics of source and target ``"joint"`` or ``"separate"``.
        head_lr_mult: learning rate of the classifier, times the base rate (10 for a new head on a pretrained network).
        adversary_lr_mult: the same for discriminators and other layers that are not part of the model.
    """

    normalisation: Normalisation = "joint"
    head_lr_mult: float = 1.0
    adversary_lr_mult: float = 1.0

    def __post_init__(self) -> None:
        arguments.choices(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float):
                arguments.number(field.name, value, least=0)


@dataclass(frozen=True)
class Domains:
    """What a method may look at besides its batches: all images of both domains, in a fixed order.

    Target labels are -1. ``steps`` is the planned length of the training, for ramps and warm-ups.
    """

    source: Iterable[Batch]
    target: Iterable[Batch]
    classes: int
    steps: int


#: losses by name, each with its coefficient
Terms = Mapping[str, tuple[float | None, Tensor]]


class DomainTask(Task):
    """A method: the model, the layers it trains beside it, and the loss of a `DomainBatch`.

    ``evaluator`` is set by `adapt`: it measures the model on held-out source and unlabelled target images.
    """

    monitor = "selection"

    def __init__(self, model: nn.Module, domains: Domains, settings: MethodConfig) -> None:
        super().__init__()
        self.model, self.domains = model, domains
        self.settings = settings
        self.classes, self.features = domains.classes, classifier_of(model).in_features
        self.evaluator: Callable[[nn.Module, Iterable[Batch]], dict[str, float]] | None = None

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return the losses of one pair of batches: the weighted sum of `terms`, and all of them."""
        terms = self.terms(self.extract_features(batch), step)
        first, *rest = [c * value for c, value in terms.values() if c is not None]
        return Losses(sum(rest, first), {name: value for name, (_, value) in terms.items()})

    def terms(self, both: DomainFeatures, step: int) -> Terms:
        """Return the method's losses by name, each with its coefficient in the total; None: it is only logged."""
        raise NotImplementedError

    def extract_features(self, batch: DomainBatch) -> DomainFeatures:
        """Return features and logits of both domains, normalised as the settings say."""
        return extract_domain_features(self.model, batch, self.settings.normalisation)

    def grl_coeff(self, step: int, upper: float, share: float, start: int = 0) -> float:
        """Return the coefficient at ``step``: 0 up to ``start``, then a ramp over ``share`` of what is left."""
        return ramp(step, max(1, round(share * (self.domains.steps - start))), upper=upper, start=start)

    def class_weights(self) -> Tensor | None:
        """Return the weights [K] the method gives the source classes, None if it has none."""
        return None

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return accuracy on held-out source ``batches``, and all that `adapt` wants to know."""
        if self.evaluator is not None:
            weights = self.class_weights()
            spread = {} if weights is None else {f"weight_{k}": w for k, w in enumerate(weights.tolist())}
            return {**self.evaluator(self.model, batches), **spread}
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
                "lr": lr * self.settings.head_lr_mult,
            },
            {
                "params": [p for p in self.parameters() if p.requires_grad and id(p) not in inside],
                "lr": lr * self.settings.adversary_lr_mult,
            },
        ]


METHODS: Registry[type[DomainTask]] = Registry("adaptation method", "convsmith.adaptation.methods")


def available() -> list[str]:
    """Return the names of all methods.

    Examples:
        >>> "san" in available()
        True
    """
    return METHODS.names()


def method_settings(method: str, overrides: Mapping[str, Any], whole: MethodConfig | None = None) -> MethodConfig:
    """Return the settings of ``method`` (``whole``, or its defaults) with ``overrides``.

    A field of a nested group is named without its group. A group may also be given whole, or by a name where it has
    names (``variant="caffe"`` of SAN); single fields are changed after that.

    Raises:
        InvalidArgument: unknown method, setting or choice, with close matches; a value of a wrong kind.

    Examples:
        >>> method_settings("dann", {"dropout": 0.0}).dropout
        0.0
    """
    entry = METHODS.entry(method)
    settings: MethodConfig = entry.traits["settings"]()
    if whole is not None:
        if type(whole) is not type(settings):
            kind = type(settings).__name__
            rule = f"the settings of {method!r} are {kind}"
            raise InvalidArgument(rule, argument="settings", given=type(whole).__name__)
        settings = whole
    groups: dict[str, Any] = {f.name: v for f in fields(settings) if is_dataclass(v := getattr(settings, f.name))}
    check_settings(f"the method {method!r}", overrides, [*setting_types(settings), *groups])
    for name in groups.keys() & overrides.keys():
        value, named = overrides[name], entry.traits.get("named", {}).get(name, {})
        if isinstance(value, str) and named:
            arguments.one_of(name, value, tuple(named))
            value = named[value]
        if not isinstance(value, type(groups[name])):
            kind = type(groups[name]).__name__
            raise InvalidArgument(f"{name} is a {kind}", argument=name, given=arguments.spelled(value))
        settings = replace(settings, **{name: value})
    found: MethodConfig = _replaced(settings, {k: v for k, v in overrides.items() if k not in groups})
    return found


def source_only_settings(settings: MethodConfig) -> MethodConfig:
    """Return what source-only shares with a method of these ``settings``, so that its recipe is the same."""
    return MethodConfig(**{f.name: getattr(settings, f.name) for f in fields(MethodConfig)})


def _replaced(settings: Any, values: Mapping[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            changes[field.name] = _replaced(value, values)
        elif field.name in values:
            changes[field.name] = _like(field.name, value, values[field.name])
    return replace(settings, **changes)


def _like(name: str, default: Any, value: Any) -> Any:
    """Return ``value`` if it is of the kind of the setting's default: numbers finite and not negative."""
    if isinstance(default, bool):
        arguments.one_of(name, value, (True, False))
    elif isinstance(default, str):
        if not isinstance(value, str):
            raise InvalidArgument(f"{name} is a name", argument=name, given=arguments.spelled(value))
    elif isinstance(default, int):
        return arguments.integer(name, value, least=0)
    elif isinstance(default, float):
        return arguments.number(name, value, least=0)
    elif isinstance(default, tuple):
        widths = (value,) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else None
        if widths is None:
            raise InvalidArgument(f"{name} are whole numbers", argument=name, given=arguments.spelled(value))
        return tuple(arguments.integer(name, width, least=1) for width in widths)
    return value
