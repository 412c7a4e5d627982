"""The suite of layers: modules that turn maps [B, C, H, W] into maps [B, C', H', W']."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from convsmith.arguments import checked
from convsmith.errors import ConvsmithError
from convsmith.testing.module_checks import built, check_precision, module_checks
from convsmith.testing.suite import Conformance, require_gradients, require_that, run, run_checks

BATCH, SIDE = 3, 7


@checked
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
    layer, exact, x = built(make), built(make, torch.float64), _maps(channels)
    wanted = run(layer, x)

    def shapes() -> None:
        require_that(wanted.dim() == 4, "[B, C', H', W']", tuple(wanted.shape))
        for maps in (x[:0], x[:1]):
            require_that(run(layer, maps).shape == (len(maps), *wanted.shape[1:]), "any number of images", len(maps))

    def precision() -> None:
        scales = {"plain": x, "offset 1e3": x + 1e3, "tiny": x * 1e-12, "huge": x * 1e12}
        for words, maps in scales.items():
            check_precision(layer, exact, maps, words)

    def gradients_of_parameters() -> None:
        other = built(make).train()
        if any(p.requires_grad for p in other.parameters()):
            require_gradients(other, other(x).square().mean(), every=True)

    def shapes_on_the_meta_device() -> None:
        with torch.device("meta"):
            empty = make().eval()
        require_that(run(empty, x.to("meta")).shape == wanted.shape, "shapes come out on the meta device")

    def refusals() -> None:
        for words, maps in {"one channel more": _maps(channels + 1), "two dimensions": x[0, 0]}.items():
            try:
                run(layer, maps)
            except (ConvsmithError, RuntimeError, TypeError, ValueError):
                continue
            raise AssertionError(f"{words} was taken")

    own = [shapes, precision, gradients_of_parameters, shapes_on_the_meta_device, refusals]
    checks = [*own, *module_checks(make, x, BATCH)]
    return run_checks(f"the layer {name or type(layer).__name__!r}", checks, exceptions)


def _maps(channels: int) -> Tensor:
    return torch.randn(BATCH, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
