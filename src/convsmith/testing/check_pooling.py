"""The suite of poolings: features [B, C, H, W] or [B, C, M] to one vector per image."""

from __future__ import annotations

import copy
import inspect
import pickle
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from convsmith.compression.runtimes import onnx_function, write_onnx
from convsmith.pooling import POOLINGS, Pooling, attach, pooling_options
from convsmith.testing.suite import (
    Conformance,
    near,
    relative_error,
    require_refusal,
    require_that,
    run_checks,
    untouched,
    wrong_tensors,
)

CHANNELS, SIDE, BATCH = 6, 5, 3


def check_pooling(
    name: str, *, options: Mapping[str, Any] | None = None, exceptions: Mapping[str, str] | None = None
) -> Conformance:
    """Check the registered pooling ``name``.

    It gives [B, out_features] for any layout and an empty batch; float64 stays, float32 agrees with it, also for
    features far from zero, tiny and large; half precision and autocast are finite; samples do not influence each other;
    gradients agree forward and backward; it maps, copies, pickles, compiles, exports, is traced and scripted, lives on
    the meta device and travels in a state dict; it changes nothing, draws no random number in evaluation, and refuses
    bad input by one clear error.

    Args:
        name: see `convsmith.pooling.available`.
        options: more arguments of the pooling.
        exceptions: reasons by check for rules that it cannot follow.

    Raises:
        Nonconforming: names every broken rule.

    Examples:
        >>> rules = check_pooling("average", exceptions={"script": "its annotations are text"}).passed
    """
    entry = POOLINGS.entry(name)
    chosen = dict(options or {})

    def made(dtype: torch.dtype = torch.float32, channels: int = CHANNELS) -> Pooling:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return entry.value(channels, dim=None, **chosen).to(dtype).eval()

    layer, exact = made(), made(torch.float64)
    x = _features()

    def traits() -> None:
        require_that(entry.traits.get("order") in (1, 2), "the order is 1 or 2", entry.traits.get("order"))
        require_that(isinstance(entry.traits.get("paper"), str), "the paper is named")
        require_that(bool(entry.summary), "the first line of the docstring says what it is")
        taken = set(inspect.signature(entry.value.__init__).parameters) - {"self", "in_channels", "dim"}
        require_that(set(pooling_options(name)) == taken, "every option has a type", taken)

    def shapes() -> None:
        for features in (x, x.flatten(2), x[:, :, :1, :1], x[:0], x[:1]):
            found = layer(features)
            require_that(found.shape == (len(features), layer.out_features), "[B, out_features]", tuple(found.shape))
        require_that(made(channels=1)(x[:, :1]).isfinite().all().item(), "one channel gives finite numbers")

    def precision() -> None:
        scales = {"plain": x, "offset 1e3": x + 1e3, "few, offset": x[..., :1, :4] - 1e3}
        scales |= {f"{size:.0e}": x * size for size in (1e-20, 1e-12, 1e12)}
        for words, features in scales.items():
            wanted, found = exact(features.double()), layer(features)
            require_that(wanted.dtype == torch.float64 and found.dtype == torch.float32, "the dtype stays")
            require_that(
                near(found, wanted, 1e-3), f"float32 is float64 to rounding, {words}", relative_error(found, wanted)
            )
            g = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
            (slope,), (right,) = (
                torch.func.vjp(f, features.to(g.dtype))[1](g) for f, g in ((layer, g), (exact, g.double()))
            )
            require_that(near(slope, right, 1e-2), f"so are gradients, {words}", relative_error(slope, right))

    def halves() -> None:
        for dtype in (torch.float16, torch.bfloat16):
            found = made(dtype)(x.to(dtype))
            require_that(found.dtype == dtype and bool(found.isfinite().all()), f"{dtype} stays and is finite")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            require_that(bool(layer(x).isfinite().all()), "autocast is finite")

    def layouts() -> None:
        wanted = layer(x)
        strided = x.transpose(2, 3).contiguous().transpose(2, 3)
        for features in (x.contiguous(memory_format=torch.channels_last), strided):
            require_that(near(layer(features), wanted, 1e-5), "the memory's layout changes nothing")

    def samples() -> None:
        alone = torch.cat([layer(sample[None]) for sample in x])
        require_that(near(alone, layer(x), 1e-5), "samples do not influence each other")

    def degenerate() -> None:
        for features in (torch.zeros_like(x), torch.full_like(x, 0.3)):
            leaf = features.clone().requires_grad_()
            out = layer(leaf)
            out.sum().backward()
            require_that(bool(out.isfinite().all()), "a constant map gives finite numbers")
            require_that(leaf.grad is not None and bool(leaf.grad.isfinite().all()), "and finite gradients")

    def gradients() -> None:
        features, direction = x.double(), _features(1).double()
        out, tangent, *_ = torch.func.jvp(exact, (features,), (direction,))
        g = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(2))
        pulled = torch.func.vjp(exact, features)[1]
        forward, backward = (g * tangent).sum(), (pulled(g)[0] * direction).sum()
        require_that(near(forward, backward, 1e-6), "forward and backward mode agree", (forward, backward))

    def mapped() -> None:
        stacked = torch.stack([x, x + 0.5])
        found = torch.func.vmap(layer)(stacked)
        require_that(near(found, torch.stack([layer(s) for s in stacked]), 1e-4), "vmap is a loop")

    def compiled() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compiler.reset()  # the compiler gives up on a function that it has seen in eight classes
            found = torch.compile(copy.deepcopy(layer), backend="eager")(x)
        require_that(near(found, layer(x), 1e-4), "compiled code gives the same numbers")

    def traced() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.jit.trace(layer, (x,), check_trace=False)
        require_that(near(program(x), layer(x), 1e-4), "the traced program gives the same numbers")

    def scripted() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.jit.script(copy.deepcopy(layer))
        require_that(near(program(x), layer(x), 1e-4), "the scripted program gives the same numbers")

    def symbolic() -> None:
        program = fx.symbolic_trace(nn.Sequential(copy.deepcopy(layer)))
        require_that(near(program(x), layer(x), 1e-4), "the symbolic trace gives the same numbers")

    def exported() -> None:
        program = torch.export.export(layer, (x,)).module()
        require_that(near(program(x), layer(x), 1e-4), "the exported program gives the same numbers")

    def onnx() -> None:
        with tempfile.TemporaryDirectory() as folder:
            found = onnx_function(write_onnx(layer, x, Path(folder) / "pooling.onnx"))(x[:2])
        require_that(near(found, layer(x[:2]), 1e-3), "ONNX Runtime gives the same numbers for any batch")

    def kept() -> None:
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301  (its own bytes)
            require_that(torch.equal(other(x), layer(x)), "copies and pickles compute the same")
        fresh = entry.value(CHANNELS, dim=None, **chosen).eval()
        fresh.load_state_dict(layer.state_dict())
        require_that(torch.equal(fresh(x), layer(x)), "the state dict holds everything")

    def meta() -> None:
        with torch.device("meta"):
            empty = entry.value(CHANNELS, dim=None, **chosen)
        wanted = {k: v.shape for k, v in layer.state_dict().items()}
        require_that(
            {k: v.shape for k, v in empty.state_dict().items()} == wanted, "the meta device has the same state"
        )

    def repeatable() -> None:
        with untouched(x):
            first = layer(x)
        require_that(torch.equal(layer(x), first), "the same features give the same bits")

    def refusals() -> None:
        for wrong in wrong_tensors(x).values():
            if not (isinstance(wrong, Tensor) and wrong.device.type == "meta"):
                require_refusal(lambda wrong=wrong: layer(wrong))  # type: ignore[misc]
        require_refusal(lambda: layer(x[:, 1:]))
        bad = x.clone()
        bad[1, 0, 0, 0] = torch.nan
        require_refusal(lambda: layer(bad))
        require_refusal(lambda: entry.value(0))
        network = nn.Sequential()
        require_refusal(lambda: attach(network, name, no_such_option=1))

    return run_checks(
        f"the pooling {name!r}",
        {
            "traits are declared": traits,
            "shapes": shapes,
            "precision": precision,
            "half precision and autocast": halves,
            "layout": layouts,
            "samples apart": samples,
            "degenerate maps": degenerate,
            "gradients": gradients,
            "vmap": mapped,
            "compile": compiled,
            "trace": traced,
            "script": scripted,
            "fx": symbolic,
            "export": exported,
            "onnx": onnx,
            "copies and state": kept,
            "meta device": meta,
            "repeatable, arguments untouched": repeatable,
            "refusals": refusals,
        },
        exceptions,
    )


def _features(seed: int = 0) -> Tensor:
    return torch.randn(BATCH, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
