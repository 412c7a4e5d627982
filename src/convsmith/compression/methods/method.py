"""What a compression method is: it plans, it applies a plan, and it rebuilds the structure from JSON."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from convsmith.compression.planning.plan import Budget, Plan
from convsmith.compression.planning.replacement import replace
from convsmith.compression.planning.subject import Subject
from convsmith.inspection.layers import Layer
from convsmith.registry import Registry

T = TypeVar("T")

#: attribute under which a network carries the JSON of what was done to it
HISTORY = "_convsmith_compression"


@dataclass(frozen=True)
class Applied:
    """What a method did: the new model, what `restore_structure` needs per layer, and what the user should hear.

    ``rows``: which output channels are left, by layer, where a method removed some.
    """

    model: nn.Module
    layers: dict[str, Any]
    notes: tuple[str, ...] = ()
    rows: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Method(ABC):
    """One way to compress, a frozen dataclass whose fields are its settings (validated in ``__post_init__``).

    A method changes only the model it is handed: `convsmith.compression.compress` hands it a copy.

    Args:
        skip: names of layers to leave alone.
    """

    skip: tuple[str, ...] = ()

    #: the budgets it can obey; a method without ``"macs"`` keeps the number of operations
    budgets: ClassVar[frozenset[str]] = frozenset()
    #: whether the example must be real images (calibration), not any tensor of the right shape
    calibrates: ClassVar[bool] = False
    #: whether other methods can run on its result
    chains: ClassVar[bool] = True
    #: whether its result is ordinary layers whose weights `reconstruct` may re-solve
    reconstructs: ClassVar[bool] = False
    #: whether fine-tuning must keep the zeros of its layers
    keeps_zeros: ClassVar[bool] = False

    @abstractmethod
    def plan(self, subject: Subject, budget: Budget | None) -> Plan:
        """Return the choices for the network; its example doubles as calibration images."""

    @abstractmethod
    def apply(self, subject: Subject, plan: Plan) -> Applied:
        """Carry ``plan`` out on the subject's model (which may be changed) and return the result."""

    @classmethod
    def restore_structure(cls, model: nn.Module, layers: dict[str, Any]) -> nn.Module:
        """Give ``model`` the structure that `apply` described in ``layers``; weights are loaded afterwards."""
        for name, setting in layers.items():
            replace(model, name, cls.empty(model.get_submodule(name), setting))
        return model

    @classmethod
    def empty(cls, layer: nn.Module, setting: dict[str, Any]) -> nn.Module:
        """Return what stands in the place of ``layer`` under this setting, its weights to be loaded."""
        raise NotImplementedError(f"{cls.__name__} replaces no single layers")

    def left_alone(self, subject: Subject) -> dict[str, str]:
        """Return the reason by name for layers that no method may change and for those in ``skip``."""
        return {**subject.seen.skipped(), **dict.fromkeys(self.skip, "skipped on request")}

    def table(
        self, subject: Subject, options: Callable[[Layer], list[T] | str]
    ) -> tuple[list[tuple[Layer, list[T]]], dict[str, str]]:
        """Return the layers with their ``options``, and by name why the others are left alone (options that say so)."""
        found, skipped = list[tuple[Layer, list[T]]](), self.left_alone(subject)
        for layer in subject.seen.usable("conv", "linear", "transposed", skip=self.skip):
            given = options(layer)
            if isinstance(given, str):
                skipped[layer.name] = given
            else:
                found.append((layer, given))
        return found, skipped


#: every method by name
METHODS: Registry[type[Method]] = Registry("compression method", "convsmith.compression.methods")


def output_error(reference: Tensor, output: Tensor) -> float:
    """Return the relative squared error |output - reference|^2 / |reference - its mean over the batch|^2.

    A network that answers the batch's mean answer to everything has error 1. With a single image the denominator is
    |reference|^2. Shapes: equal, [B, ...].
    """
    reference, output = reference.double(), output.double()
    centre = reference.mean(0, keepdim=True) if len(reference) > 1 else 0.0
    scale = float((reference - centre).square().sum())
    error = float((output - reference).square().sum())
    return error / scale if scale > 0 else (0.0 if error == 0 else float("inf"))
