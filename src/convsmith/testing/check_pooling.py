"""The suite of poolings: features [B, C, H, W] or [B, C, M] to one vector per image."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import checked
from convsmith.pooling import POOLINGS, Pooling, attach, pooling_options
from convsmith.testing.module_checks import built, check_precision, module_checks
from convsmith.testing.suite import (
    Conformance,
    require_near,
    require_refusal,
    require_refusals,
    require_that,
    run_checks,
    wrong_tensors,
)

CHANNELS, SIDE, BATCH = 6, 5, 3


@checked
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

    def make(channels: int = CHANNELS) -> Pooling:
        return entry.value(channels, dim=None, **chosen)

    layer, exact = built(make), built(make, torch.float64)
    x = torch.randn(BATCH, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def traits_are_declared() -> None:
        require_that(entry.traits.get("order") in (1, 2), "the order is 1 or 2", entry.traits.get("order"))
        require_that(isinstance(entry.traits.get("paper"), str), "the paper is named")
        require_that(bool(entry.summary), "the first line of the docstring says what it is")
        taken = set(inspect.signature(entry.value.__init__).parameters) - {"self", "in_channels", "dim"}
        require_that(set(pooling_options(name)) == taken, "every option has a type", taken)

    def shapes() -> None:
        for features in (x, x.flatten(2), x[:, :, :1, :1], x[:0], x[:1]):
            found = layer(features)
            require_that(found.shape == (len(features), layer.out_features), "[B, out_features]", tuple(found.shape))
        require_that(make(1).eval()(x[:, :1]).isfinite().all().item(), "one channel gives finite numbers")

    def precision() -> None:
        scales = {"plain": x, "offset 1e3": x + 1e3, "few, offset": x[..., :1, :4] - 1e3}
        scales |= {f"{size:.0e}": x * size for size in (1e-20, 1e-12, 1e12)}
        for words, features in scales.items():
            found = check_precision(layer, exact, features, words)
            g = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
            (slope,), (right,) = (
                torch.func.vjp(f, features.to(g.dtype))[1](g) for f, g in ((layer, g), (exact, g.double()))
            )
            require_near(slope, right, 1e-2, f"so are gradients, {words}")

    def degenerate_maps() -> None:
        for features in (torch.zeros_like(x), torch.full_like(x, 0.3)):
            leaf = features.clone().requires_grad_()
            out = layer(leaf)
            out.sum().backward()
            require_that(bool(out.isfinite().all()), "a constant map gives finite numbers")
            require_that(leaf.grad is not None and bool(leaf.grad.isfinite().all()), "and finite gradients")

    def refusals() -> None:
        real = [wrong for wrong in wrong_tensors(x) if not (isinstance(wrong, Tensor) and wrong.is_meta)]
        require_refusals(layer, [None, *real, x[:, 1:]])
        require_refusal(lambda: entry.value(0))
        require_refusal(lambda: attach(nn.Sequential(), name, no_such_option=1))

    checks = [traits_are_declared, shapes, precision, degenerate_maps, refusals, *module_checks(make, x, 2)]
    return run_checks(f"the pooling {name!r}", checks, exceptions)
