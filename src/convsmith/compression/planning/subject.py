"""The network that a method plans for and changes, with what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from convsmith.compression.cost import Cost, cost
from convsmith.inspection.layers import LayerInventory
from convsmith.inspection.modes import copied

#: called with (done, total, note)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Subject:
    """A network, what tracing it on the example showed, and what was measured since.

    ``memory`` holds what several plans of one network, and carrying one out, share: moments, sensitivities, rankings.
    ``resolved``: weights will be re-solved once the plan is carried out, so what is tried out may count on it.
    ``timed``: the plans are for a budget of time, not of operations.
    """

    model: nn.Module
    seen: LayerInventory
    progress: Progress | None = None
    resolved: bool = False
    timed: bool = False
    memory: dict[Any, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def cost(self) -> Cost:
        """Return the whole network's counts."""
        return cost(self.model, tuple(self.seen.example.shape[1:]))

    def copy(self) -> Subject:
        """Return the same with a copied network; the memory is shared."""
        work = copied(self.model)
        layers = tuple(replace(layer, module=work.get_submodule(layer.name)) for layer in self.seen.layers)
        return replace(self, model=work, seen=replace(self.seen, layers=layers), progress=None)

    def once(self, key: Any, work: Callable[[], Any]) -> Any:
        """Return ``work()``, computed at most once a key."""
        if key not in self.memory:
            self.memory[key] = work()
        return self.memory[key]

    def tell(self, done: int, total: int, note: str) -> None:
        """Report progress if somebody listens."""
        if self.progress is not None:
            self.progress(done, total, note)
