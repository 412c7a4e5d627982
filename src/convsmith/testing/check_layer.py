"""The suite of layers: modules that turn maps [B, C, H, W] into maps [B, C', H', W']."""

from __future__ import annotations

import copy
import pickle
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from convsmith.compression.runtimes import onnx_function, write_onnx
from convsmith.errors import ConvsmithError
from convsmith.testing.suite import Conformance, near, relative_error, require_that, run_checks, untouched

BATCH, SIDE = 3, 7


def check_layer(
    make: Callable[[], nn.Module],
    channels: int,
    *,
    name: str | None = None,
    exceptions: Mapping[str, str] | None = None,
) -> Conformance:
    """Check the layers that ``make()`` returns, in evaluation mode.

    They give [B, C', H', W'] for any layout and an empty batch; float64 stays, float32 agrees with it, also far from
    zero, for tiny and large maps; half precision and autocast are finite; samples stay apart; gradients
    agree forward and backward; they map, copy, pickle, compile, trace, script, export (to ONNX too) and travel in a
    state dict, or refuse by an error that says why; they live on the meta device; they change nothing and draw no
    random number.

    Args:
        make: builds a new layer of the same structure every time.
        channels: C.
        name: for messages; the class of the layer unless given.
        exceptions: reasons by check for rules that they cannot follow.

    Raises:
        Nonconforming: names every broken rule.

    Examples:
        >>> rules = check_layer(lambda: nn.Conv2d(4, 4, 1), 4).passed
    """

    def made(dtype: torch.dtype = torch.float32) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make().to(dtype).eval()

    layer, exact = made(), made(torch.float64)
    x = _maps(channels)

    def run(module: nn.Module, maps: Tensor = x) -> Tensor:
        with torch.no_grad():
            found: Tensor = module(maps)
            return found

    wanted = run(layer)

    def same(found: Tensor, rule: str, bound: float = 1e-4) -> None:
        require_that(near(found, wanted, bound), rule, relative_error(found, wanted))

    def shapes() -> None:
        require_that(wanted.dim() == 4, "[B, C', H', W']", tuple(wanted.shape))
        for maps in (x[:0], x[:1]):
            require_that(run(layer, maps).shape == (len(maps), *wanted.shape[1:]), "any number of images", len(maps))

    def precision() -> None:
        scales = {"plain": x, "offset 1e3": x + 1e3}
        scales |= {f"{size:.0e}": x * size for size in (1e-12, 1e12)}
        for words, maps in scales.items():
            found, right = run(layer, maps), run(exact, maps.double())
            require_that(right.dtype == torch.float64 and found.dtype == torch.float32, "the dtype stays")
            require_that(
                near(found, right, 1e-3), f"float32 is float64 to rounding, {words}", relative_error(found, right)
            )

    def halves() -> None:
        for dtype in (torch.float16, torch.bfloat16):
            found = run(made(dtype), x.to(dtype))
            require_that(found.dtype == dtype and bool(found.isfinite().all()), f"{dtype} stays and is finite")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            require_that(bool(run(layer).isfinite().all()), "autocast is finite")

    def layouts() -> None:
        strided = (x.mT.contiguous().mT, torch.stack([x, x], -1)[..., 0])
        for maps in (x.contiguous(memory_format=torch.channels_last), *strided):
            same(run(layer, maps), "the memory's layout changes nothing", 1e-5)

    def samples() -> None:
        same(torch.cat([run(layer, sample[None]) for sample in x]), "samples do not influence each other", 1e-5)

    def gradients() -> None:
        maps, direction = x.double(), _maps(channels, 1).double()
        out, tangent, *_ = torch.func.jvp(exact, (maps,), (direction,))
        g = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(2))
        pulled = torch.func.vjp(exact, maps)[1](g)[0]
        require_that(bool(pulled.isfinite().all()), "the gradient is finite")
        forward, backward = (g * tangent).sum(), (pulled * direction).sum()
        require_that(near(forward, backward, 1e-6), "forward and backward mode agree", (forward, backward))

    def parameters() -> None:
        other = made().train()
        if not any(p.requires_grad for p in other.parameters()):
            return
        other(x).square().mean().backward()
        missing = [key for key, p in other.named_parameters() if p.requires_grad and p.grad is None]
        require_that(not missing, "every parameter gets a gradient", missing[:3])

    def mapped() -> None:
        stacked = torch.stack([x, x + 0.5])
        found = torch.func.vmap(layer)(stacked)
        require_that(near(found, torch.stack([layer(s) for s in stacked]), 1e-4), "vmap is a loop")

    def compiled() -> None:
        torch.compiler.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program: Any = torch.compile(copy.deepcopy(layer), backend="eager")
            same(run(program), "compiled code gives the same numbers")

    def traced() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(run(torch.jit.trace(layer, (x,), check_trace=False)), "the traced program gives the same numbers")

    def scripted() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(run(torch.jit.script(copy.deepcopy(layer))), "the scripted program gives the same numbers")

    def symbolic() -> None:
        same(run(fx.symbolic_trace(nn.Sequential(copy.deepcopy(layer)))), "the symbolic trace gives the same numbers")

    def exported() -> None:
        same(run(torch.export.export(layer, (x,)).module()), "the exported program gives the same numbers")

    def onnx() -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = write_onnx(layer, x, Path(folder) / "layer.onnx")
            same(onnx_function(file)(x), "ONNX Runtime gives the same numbers", 1e-3)

    def copies() -> None:
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301  (its own bytes)
            require_that(torch.equal(run(other), wanted), "copies and pickles compute the same")
        fresh = make().eval()
        fresh.load_state_dict(layer.state_dict())
        require_that(torch.equal(run(fresh), wanted), "the state dict holds everything")

    def meta() -> None:
        with torch.device("meta"):
            empty = make().eval()
        state = {k: v.shape for k, v in layer.state_dict().items()}
        require_that({k: v.shape for k, v in empty.state_dict().items()} == state, "the meta device has the state")
        require_that(run(empty, x.to("meta")).shape == wanted.shape, "shapes come out on the meta device")

    def repeatable() -> None:
        with untouched(x, *layer.state_dict().values()):
            first = run(layer)
        require_that(torch.equal(first, wanted), "the same maps give the same bits")

    def refusals() -> None:
        for words, maps in {
            "one channel more": _maps(channels + 1),
            "two dimensions": x[0, 0],
        }.items():
            try:
                run(layer, maps)
            except (ConvsmithError, RuntimeError, TypeError, ValueError):
                continue
            raise AssertionError(f"{words} was taken")

    return run_checks(
        f"the layer {name or type(layer).__name__!r}",
        {
            "shapes": shapes,
            "precision": precision,
            "half precision and autocast": halves,
            "layout": layouts,
            "samples apart": samples,
            "gradients": gradients,
            "gradients of parameters": parameters,
            "vmap": mapped,
            "compile": compiled,
            "trace": traced,
            "script": scripted,
            "fx": symbolic,
            "export": exported,
            "onnx": onnx,
            "copies and state": copies,
            "meta device": meta,
            "repeatable, arguments untouched": repeatable,
            "refusals": refusals,
        },
        exceptions,
    )


def _maps(channels: int, seed: int = 0) -> Tensor:
    return torch.randn(BATCH, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
