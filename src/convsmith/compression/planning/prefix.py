"""What a network computes before a layer, computed once: trials of that layer run from there.

The outputs of the outermost modules that end before the layer begins are kept; a trial hands them out in their order
in place of running those modules, and everything from the layer on runs as it is. Whatever is not handed out runs, so
a network that is called in an unusual way costs time, never truth. Where a module changed what others can see (a tensor
in place, a list it was given) the replay is compared with the whole network before it is believed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from convsmith.compression.methods.method import output_error
from convsmith.inspection.layers import LayerInventory
from convsmith.inspection.modes import evaluating
from convsmith.inspection.outputs import joined_output, output_tensors

#: relative squared error below which a replay is the whole network's answer but for rounding
SAME = 1e-9


class _Reached(Exception):
    """The first of the modules asked for is about to run."""


class Prefix:
    """How far changes move the output of ``model`` on a traced example; what runs before them is computed once."""

    def __init__(self, model: nn.Module, seen: LayerInventory, images: int) -> None:
        self.model, self.images = model, seen.example[:images]
        self.wanted = joined_output(seen.output)[:images]
        #: what is handed out, in the order of the calls
        self.kept: list[tuple[nn.Module, Any]] = []
        self.proven: set[nn.Module] = set()
        self.whole = False

    def before(self, modules: Collection[nn.Module]) -> None:
        """Let what follows start where the first of ``modules``, as yet unchanged, begins."""
        if self.whole:
            return
        try:
            recorded = self._recorded(modules)
            if recorded is None and self.kept:  # they lie before the last ones
                self.kept = []
                recorded = self._recorded(modules)
            self.kept, doubtful = recorded or ([], set())
            self.whole = bool(doubtful - self.proven) and self.error() > SAME
            self.proven |= doubtful
        except Exception:  # noqa: BLE001  (an output that cannot be copied, a module that misses what it expects)
            self.whole = True
        self.kept = [] if self.whole else self.kept

    def error(self) -> float:
        """Return the `output_error` of the network as it is now, a large number where it is not finite."""
        left = list(reversed(self.kept))

        def run(module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
            if left and left[-1][0] is module:
                return copy.deepcopy(left.pop()[1])
            return forward(*args, **kwargs)

        with _calls(self.model, run):
            error = output_error(self.wanted, joined_output(self.model(self.images)))
        return error if math.isfinite(error) else 1e9

    def _recorded(self, modules: Collection[nn.Module]) -> tuple[list[tuple[nn.Module, Any]], set[nn.Module]] | None:
        """Return what ends before ``modules`` begin and which of it is doubtful; None if they are not reached."""
        left = list(reversed(self.kept))
        found: list[tuple[nn.Module, Any, Any, Any]] = []
        doubtful: set[nn.Module] = set()

        def run(module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
            if module in modules:
                raise _Reached
            first, given = len(found), _versions((args, kwargs))
            known = bool(left) and left[-1][0] is module
            output = copy.deepcopy(left.pop()[1]) if known else forward(*args, **kwargs)
            if given != _versions((args, kwargs)) or any(isinstance(a, list | dict) for a in args):
                doubtful.add(module)
            found[first:] = [(module, copy.deepcopy(output), output, _versions(output))]
            return output

        try:
            with _calls(self.model, run):
                self.model(self.images)
        except _Reached:
            doubtful |= {module for module, _, output, versions in found if versions != _versions(output)}
            return [(module, kept) for module, kept, _, _ in found], doubtful
        return None


@contextmanager
def _calls(model: nn.Module, run: Any) -> Iterator[None]:
    """Hand every module's forward to ``run`` (module, forward, args, kwargs), in evaluation without gradients."""
    own = {m: vars(m).get("forward") for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)}

    def wrapped(module: nn.Module, forward: Any) -> Any:
        return lambda *args, **kwargs: run(module, forward, args, kwargs)

    try:
        for module in own:
            vars(module)["forward"] = wrapped(module, module.forward)
        with evaluating(model), torch.no_grad():
            yield
    finally:
        for module, forward in own.items():
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward


def _versions(value: Any) -> list[tuple[int, int]]:
    """Return which tensors there are and how often each was changed in place."""
    return [(id(tensor), tensor._version) for tensor in output_tensors(value)]
