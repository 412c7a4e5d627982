"""The one interface between the training loop and a method: a task turns a batch into losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from convsmith.data.batch import Batch


@dataclass(frozen=True)
class Losses:
    """``total`` is what the loop differentiates; ``parts`` are scalars for the log."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class Task(nn.Module, ABC):
    """A method seen by the loop: a module that holds ``model`` and everything else that is trained or saved.

    Whatever must survive a restart is a parameter or a buffer (it travels in ``state_dict``), never a Python counter:
    schedules inside a task are functions of ``step``.
    """

    model: nn.Module
    #: the entry of `evaluate`'s result that early stopping and "best" use; higher is better
    monitor: str = "accuracy"
    #: of the method, by their ``repr``: a run continues only with those it began with
    settings: Any = None

    @abstractmethod
    def forward(self, batch: Any, step: int) -> Losses:
        """Return the losses of one batch at global step ``step`` (optimizer steps done so far)."""

    @abstractmethod
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return metrics by name over ``batches``; called in eval mode, without gradients."""

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return optimizer parameter groups; ``lr`` is the configured base rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]

    def before_step(self, step: int) -> None:
        """Do what must happen between updates (refreshing class weights, for one), before step ``step``."""
