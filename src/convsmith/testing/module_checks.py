"""Checks that layers and poolings share: precision of other types, gradients, transforms, programs, copies."""

from __future__ import annotations

import copy
import pickle
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from convsmith.compression.runtimes import onnx_function, write_onnx
from convsmith.testing.suite import Checks, other_layouts, require_near, require_that, run, state_shapes, untouched


def built(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return what ``make()`` builds, seeded, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().to(dtype).eval()


def module_checks(make: Callable[[], nn.Module], x: Tensor, few: int) -> Checks:
    """Return the checks of what ``make()`` builds on maps ``x``; ONNX Runtime is given the first ``few`` of them."""
    layer, exact = built(make), built(make, torch.float64)
    wanted = run(layer, x)

    def half_precision_and_autocast() -> None:
        for dtype in (torch.float16, torch.bfloat16):
            found = run(built(make, dtype), x.to(dtype))
            require_that(found.dtype == dtype and bool(found.isfinite().all()), f"{dtype} stays and is finite")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            require_that(bool(run(layer, x).isfinite().all()), "autocast is finite")

    def layout() -> None:
        for maps in other_layouts(x):
            require_near(run(layer, maps), wanted, 1e-5, "the memory's layout changes nothing")

    def samples_apart() -> None:
        apart = torch.cat([run(layer, sample[None]) for sample in x])
        require_near(apart, wanted, 1e-5, "samples do not influence each other")

    def gradients() -> None:
        maps = x.double()
        direction = torch.randn(x.shape, dtype=maps.dtype, generator=torch.Generator().manual_seed(1))
        out, tangent, *_ = torch.func.jvp(exact, (maps,), (direction,))
        g = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(2))
        pulled = torch.func.vjp(exact, maps)[1](g)[0]
        require_that(bool(pulled.isfinite().all()), "the gradient is finite")
        forward, backward = (g * tangent).sum(), (pulled * direction).sum()
        require_near(forward, backward, 1e-6, "forward and backward mode agree")

    def vmap() -> None:
        stacked = torch.stack([x, x + 0.5])
        found = torch.func.vmap(layer)(stacked)
        require_near(found, torch.stack([layer(s) for s in stacked]), 1e-4, "vmap is a loop")

    def program(name: str, words: str, change: Callable[[nn.Module], Any]) -> Callable[[], None]:
        def check() -> None:
            torch.compiler.reset()  # the compiler gives up on a function that it has seen in eight classes
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = run(change(copy.deepcopy(layer)), x)
            require_near(found, wanted, 1e-4, f"the {words} gives the same numbers")

        check.__name__ = name
        return check

    def onnx() -> None:
        rule = f"ONNX Runtime gives the same numbers for {few} of {len(x)} maps"
        require_near(through_onnx(layer, x, few), wanted[:few], 1e-3, rule)

    def copies_and_state() -> None:
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301  (its own bytes)
            require_that(torch.equal(run(other, x), wanted), "copies and pickles compute the same")
        other = make().eval()
        other.load_state_dict(layer.state_dict())
        require_that(torch.equal(run(other, x), wanted), "the state dict holds everything")

    def meta_device() -> None:
        with torch.device("meta"):
            empty = make().eval()
        require_that(state_shapes(empty) == state_shapes(layer), "the meta device has the state")

    def repeatable() -> None:
        with untouched(x, *layer.state_dict().values()):
            first = run(layer, x)
        require_that(torch.equal(first, wanted), "the same maps give the same bits")

    checks = [half_precision_and_autocast, layout, samples_apart, gradients, vmap, onnx, copies_and_state, repeatable]
    return [
        *checks,
        program("compile", "compiled code", lambda own: torch.compile(own, backend="eager")),
        program("trace", "traced program", lambda own: torch.jit.trace(own, (x,), check_trace=False)),
        program("script", "scripted program", torch.jit.script),
        program("fx", "symbolic trace", lambda own: fx.symbolic_trace(nn.Sequential(own))),
        program("export", "exported program", lambda own: torch.export.export(own, (x,)).module()),
        meta_device,
    ]


def check_precision(layer: nn.Module, exact: nn.Module, maps: Tensor, words: str) -> Tensor:
    """Return what ``layer`` gives on ``maps``, which must be what ``exact`` gives in float64, to rounding."""
    found, right = layer(maps), exact(maps.double())
    require_that(right.dtype == torch.float64 and found.dtype == torch.float32, "the dtype stays")
    require_near(found, right, 1e-3, f"float32 is float64 to rounding, {words}")
    return found


def through_onnx(model: nn.Module, maps: Tensor, few: int | None = None) -> Tensor:
    """Return what ONNX Runtime gives on the first ``few`` of the ``maps`` with which ``model`` was exported."""
    with tempfile.TemporaryDirectory() as folder:
        return onnx_function(write_onnx(model, maps, Path(folder) / "model.onnx"))(maps[:few])
