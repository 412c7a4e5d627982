"""An exponential moving average of a task's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def averaging_decay(decay: float, step: int) -> float:
    """``min(decay, (1 + step) / (10 + step))``: a young average forgets its random start quickly."""
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """``average <- d * average + (1 - d) * weights`` after each step, with ``d`` from `averaging_decay`.

    Trainable parameters and floating-point buffers (running statistics) are averaged; everything else is not touched.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        named: dict[str, Tensor] = {n: p for n, p in module.named_parameters() if p.requires_grad}
        named.update({n: b for n, b in module.named_buffers() if b.is_floating_point()})
        self.names = list(named)
        self.weights = [t.detach() for t in named.values()]
        self.average = [t.clone() for t in self.weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number ``step`` (0-based)."""
        torch._foreach_lerp_(self.average, self.weights, 1 - averaging_decay(self.decay, step))

    @torch.no_grad()
    def _exchange(self) -> None:
        held = [w.clone() for w in self.weights]
        torch._foreach_copy_(self.weights, self.average)
        torch._foreach_copy_(self.average, held)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the module inside the ``with`` block, and its own weights back after it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def write_back(self) -> None:
        """Leave the average in the module for good."""
        torch._foreach_copy_(self.weights, self.average)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average by name (the tensors themselves, not copies)."""
        return dict(zip(self.names, self.average, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Read what `state_dict` gave."""
        for name, tensor in zip(self.names, self.average, strict=True):
            tensor.copy_(state[name])
