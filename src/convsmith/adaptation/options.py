"""The two groups of `adapt`'s options beside training and method: what is read, and how a run is judged."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from convsmith import arguments
from convsmith.adaptation.evaluation.alarms import CollapseRule
from convsmith.adaptation.evaluation.validators import VALIDATORS
from convsmith.data import AUGMENTATIONS, Preprocessing
from convsmith.data.loading import checked_size
from convsmith.errors import InvalidArgument


@dataclass(frozen=True)
class InputOptions:
    """How specs and folders become images.

    Args:
        target_classes: cut a labelled target to these classes (for experiments).
        size: side of the images, for specs and folders.
        channels: 1 or 3, for specs and folders.
        crop: see `convsmith.data.pair`.
        preprocessing: that of a pretrained network, `Preprocessing.from_model(model)`; ``size`` may only change its
            size. Without it images are read plainly and normalised by the source's statistics.
        augment: random changes of the training images of both domains (`convsmith.data.AUGMENTATIONS`). "none" leaves
            a source that was loaded with changes of its own as it is.
        workers: processes that read and change images ahead; they change the speed only.
    """

    target_classes: Any = None
    size: int | tuple[int, int] | None = None
    channels: int | None = None
    crop: tuple[int | None, int | None] = (None, None)
    preprocessing: Preprocessing | None = None
    augment: str = "none"
    workers: int = 0

    def __post_init__(self) -> None:
        AUGMENTATIONS.entry(self.augment)
        arguments.integer("workers", self.workers, least=0)
        arguments.one_of("channels", self.channels, (None, 1, 3))
        arguments.of_type("preprocessing", self.preprocessing, Preprocessing | None)
        for side in arguments.of_type("crop", self.crop, tuple[int | None, int | None]):
            if side is not None:
                arguments.integer("crop", side, least=1)
        arguments.of_type("size", self.size, int | tuple[int, int] | None)
        checked_size(self.size)


@dataclass(frozen=True)
class EvaluationOptions:
    """How a run is judged while it trains.

    Args:
        validator: choose the step by this score, computed at every evaluation; None keeps the last step. ``"oracle"``
            uses target labels and needs ``use_target_labels``.
        num_evals: passes over held-out source and whole target images in a run, for selection, alarms in the log and
            history; a ``config`` with ``evaluate_every`` decides instead.
        use_target_labels: also measure accuracy on the target's labels, as ``oracle_accuracy``; it selects nothing.
        collapse: thresholds of the collapse alarm.
    """

    validator: str | None = None
    num_evals: int = 10
    use_target_labels: bool = False
    collapse: CollapseRule = field(default_factory=CollapseRule)

    def __post_init__(self) -> None:
        arguments.integer("num_evals", self.num_evals, least=1)
        arguments.one_of("use_target_labels", self.use_target_labels, (True, False))
        arguments.of_type("collapse", self.collapse, CollapseRule)
        if self.validator is None:
            return
        if VALIDATORS.entry(self.validator).traits["uses_target_labels"] and not self.use_target_labels:
            rule = f"the validator {self.validator!r} uses target labels"
            raise InvalidArgument(rule, argument="validator", hint="say use_target_labels=True as well")


def filled(name: str, kind: Any, whole: Any, given: dict[str, Any]) -> Any:
    """Return the group ``whole`` (the default one if None) with those of ``given`` that are its fields, taken out."""
    arguments.of_type(name, whole, kind | None)
    own = {f.name: given.pop(f.name) for f in fields(kind) if f.name in given}
    return replace(whole, **own) if whole is not None else kind(**own)
