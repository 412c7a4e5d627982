"""What every adaptation method shares: its settings, what it may look at, and the registry of methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith import arguments
from convsmith.adaptation.losses.reversal import ramp
from convsmith.data.batch import Batch, DomainBatch
from convsmith.errors import InvalidArgument
from convsmith.inspection.features import classifier_of, extract_features, features_and_logits
from convsmith.inspection.modes import BATCH_NORMS
from convsmith.registry import Registry, check_settings, setting_types
from convsmith.training.task import Losses, Task

Normalisation = Literal["joint", "separate"]


def check_values(settings: Any) -> None:
    """Refuse values of another type than their fields, unknown choices, numbers below 0 and, in lists, below 1."""
    arguments.typed(settings)
    for name, value in vars(settings).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                arguments.number(name, number, least=int(isinstance(value, tuple)))


@dataclass(frozen=True)
class MethodConfig:
    """Settings of every method.

    Args:
        head_lr_mult: learning rate of the classifier, times the base rate (10 for a new head on a pretrained network).
    """

    head_lr_mult: float = 1.0

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class AdversaryConfig(MethodConfig):
    """Settings of every method that trains discriminators beside the model.

    Args:
        adversary_lr_mult: learning rate of discriminators and other layers that are not part of the model, times the
            base rate.
        hidden: widths of each discriminator; ``()`` for linear ones.
        dropout: of the discriminators.
    """

    adversary_lr_mult: float = 1.0
    hidden: tuple[int, ...] = (1024, 1024)
    dropout: float = 0.5


@dataclass(frozen=True)
class PairConfig(MethodConfig):
    """Settings of every method that runs source and target through one network in a step.

    Args:
        normalisation: batch-norm statistics of source and target ``"joint"`` or ``"separate"``.
    """

    normalisation: Normalisation = "joint"


@dataclass(frozen=True)
class Domains:
    """What a method may look at besides its batches: all images of both domains, in a fixed order.

    Target labels are -1. ``steps`` is the planned length of the training, for ramps and warm-ups.
    """

    source: Iterable[Batch]
    target: Iterable[Batch]
    classes: int
    steps: int


@dataclass(frozen=True)
class DomainFeatures:
    """Both domains through the network. Shapes: features [n, d], logits [n, K], labels and index [n]."""

    source_features: Tensor
    source_logits: Tensor
    source_labels: Tensor
    source_index: Tensor
    target_features: Tensor
    target_logits: Tensor
    target_index: Tensor

    def cross_entropy(self, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
        """Return that of the source, a scalar; [n] with ``reduction="none"``."""
        logits, labels = self.source_logits, self.source_labels
        return F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=label_smoothing)

    def weighted_cross_entropy(self, weights: Tensor) -> Tensor:
        """Return ``sum_i w_i CE_i / sum_i w_i`` of the source, 0 if no image has a weight."""
        return (weights * self.cross_entropy("none")).sum() / weights.sum().clamp_min(1e-8)


def extract_domain_features(
    model: nn.Module, batch: DomainBatch, normalisation: Normalisation = "joint"
) -> DomainFeatures:
    """Return features and logits of both domains.

    ``"joint"`` runs source and target as one batch, so batch-norm layers see their mixture (SAN, PADA); ``"separate"``
    runs them apart, each normalised by its own batch, and the running statistics are the target's.
    """
    n = len(batch.source)
    if normalisation == "joint":
        features, logits = features_and_logits(model, torch.cat([batch.source.images, batch.target.images]))
        parts = (features[:n], logits[:n], features[n:], logits[n:])
    else:
        with _running_statistics_kept(model):
            source = features_and_logits(model, batch.source.images)
        parts = (*source, *features_and_logits(model, batch.target.images))
    return DomainFeatures(*parts[:2], batch.source.labels, batch.source.index, *parts[2:], batch.target.index)


@contextmanager
def _running_statistics_kept(model: nn.Module) -> Iterator[None]:
    layers = [(m, m.track_running_stats) for m in model.modules() if isinstance(m, BATCH_NORMS)]
    for layer, _ in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, tracked in layers:
            layer.track_running_stats = tracked


#: losses by name, each with its coefficient
Terms = Mapping[str, tuple[float | None, Tensor]]


class DomainTask(Task):
    """A method: the model, the layers it trains beside it, and the loss of a `DomainBatch`.

    ``evaluator`` is set by `adapt`: it measures the model on held-out source and unlabelled target images. The settings
    are a `PairConfig` where the method gives `terms`, and may be a `MethodConfig` where it has a `forward` of its own.
    """

    monitor = "selection"

    def __init__(self, model: nn.Module, domains: Domains, settings: MethodConfig) -> None:
        super().__init__()
        self.model, self.domains = model, domains
        self.settings = settings
        self.classes, self.features = domains.classes, classifier_of(model).in_features
        self.start = 0  # the step at which the warm-up ends
        self.evaluator: Callable[[nn.Module, Iterable[Batch]], dict[str, float]] | None = None

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return the losses of one pair of batches: the weighted sum of `terms`, and all of them."""
        terms = self.terms(extract_domain_features(self.model, batch, self.settings.normalisation), step)
        first, *rest = [c * value for c, value in terms.values() if c is not None]
        return Losses(sum(rest, first), {name: value for name, (_, value) in terms.items()})

    def terms(self, both: DomainFeatures, step: int) -> Terms:
        """Return the method's losses by name, each with its coefficient in the total; None: it is only logged."""
        raise NotImplementedError

    def grl_coeff(self, step: int, upper: float, share: float) -> float:
        """Return the coefficient at ``step``: 0 in the warm-up, then a ramp over ``share`` of what is left."""
        length = max(1, round(share * (self.domains.steps - self.start)))
        return ramp(step, length, upper=upper, start=self.start)

    def class_weights(self) -> Tensor | None:
        """Return the weights [K] the method gives the source classes, None if it has none."""
        return None

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return accuracy on held-out source ``batches``, and all that `adapt` wants to know."""
        if self.evaluator is not None:
            weights = self.class_weights()
            spread = {} if weights is None else {f"weight_{k}": w for k, w in enumerate(weights.tolist())}
            return {**self.evaluator(self.model, batches), **spread}
        source = extract_features(self.model, batches)
        accuracy = float((source.logits.argmax(1) == source.labels).double().mean())
        return {"source_accuracy": accuracy, "selection": accuracy}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return three groups: the body, the classifier, and everything beside the model."""
        head, model = set(classifier_of(self.model).parameters()), set(self.model.parameters())
        trained = [p for p in self.parameters() if p.requires_grad]
        beside = getattr(self.settings, "adversary_lr_mult", 1.0)
        return [
            {"params": [p for p in trained if p in model and p not in head], "lr": lr},
            {"params": [p for p in trained if p in head], "lr": lr * self.settings.head_lr_mult},
            {"params": [p for p in trained if p not in model], "lr": lr * beside},
        ]


METHODS: Registry[type[DomainTask]] = Registry("adaptation method", "convsmith.adaptation.methods")


def available() -> list[str]:
    """Return the names of all methods.

    Examples:
        >>> "san" in available()
        True
    """
    return METHODS.names()


@arguments.checked
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
    kind = entry.traits["settings"]
    settings: Any = kind() if whole is None else whole
    if type(settings) is not kind:
        rule = f"the settings of {method!r} are {kind.__name__}"
        raise InvalidArgument(rule, argument="settings", given=type(whole).__name__)
    groups = {f.name for f in fields(settings) if is_dataclass(getattr(settings, f.name))}
    check_settings(f"the method {method!r}", overrides, [*setting_types(settings), *groups])
    for name in groups & overrides.keys():
        value, named = overrides[name], entry.traits.get("named", {}).get(name, {})
        if isinstance(value, str) and named:
            arguments.one_of(name, value, tuple(named))
            value = named[value]
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
            changes[field.name] = values[field.name]
    return replace(settings, **changes)
