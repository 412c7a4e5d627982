"""Second-order pooling beside the published layers: time, and memory kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from convsmith.errors import RunFailed
from convsmith.pooling import covariance, isqrt_covariance, power_covariance
from convsmith.pooling.matrix_root import matrix_sqrt
from experiments.benchmarks.contract import Bench, suite
from experiments.benchmarks.memory import saved_bytes
from experiments.benchmarks.pooling_published import plain_isqrt, published_isqrt


def _both_ways(function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Callable[[], None]:
    def call() -> None:
        x.grad = None
        function(x).backward(g)

    return call


def _check_same(x: Tensor, g: Tensor) -> None:
    """Refuse to compare times of functions that do not compute the same."""
    g = g + g.mT
    outs = [f(x) for f in (published_isqrt, isqrt_covariance)]
    grads = [torch.autograd.grad(out, x, g)[0] for out in outs]
    for ours, theirs in ((outs[1], outs[0]), (grads[1], grads[0])):
        error = float((ours.detach() - theirs.detach()).norm() / theirs.detach().norm())
        if error > 1e-4:
            raise RunFailed("the published layers and isqrt_covariance disagree", given=f"relative error {error:.1e}")


@suite("pooling")
def run(bench: Bench) -> None:
    """iSQRT-COV of 256 channels against the published layers; the roots and the poolings beside each other."""
    d, batch = 256, 16
    for side, aim in ((7, "25 times (aim 40)"), (14, "3 times (aim 4)"), (28, "")):
        generator = torch.Generator().manual_seed(side)
        x = torch.randn(batch, d, side, side, generator=generator).relu().to(bench.device).requires_grad_()
        g = torch.randn(batch, d, d, generator=generator).to(bench.device)
        _check_same(x, g)
        kept = {
            "published": saved_bytes(partial(published_isqrt, x)),
            "isqrt_covariance": saved_bytes(partial(isqrt_covariance, x)),
        }
        bench.compare(
            f"iSQRT-COV forward and backward, {side} x {side} map",
            {
                "published": _both_ways(published_isqrt, x, g),
                "isqrt_covariance": _both_ways(isqrt_covariance, x, g),
                "channel side": _both_ways(lambda x: isqrt_covariance(x, side="channels"), x, g),
                "plain autograd": _both_ways(plain_isqrt, x, g),
                "exact root (eigh)": _both_ways(power_covariance, x, g),
            },
            baseline="published",
            rounds=7,
            seconds=8.0,
            settings={"batch": batch, "channels": d, "iterations": 5, "dtype": "float32", "saved_bytes": kept},
            aim=f"isqrt_covariance at least {aim} faster than published" if aim else "",
        )

    side = 14
    x = torch.randn(batch, d, side, side, generator=torch.Generator().manual_seed(0)).relu().to(bench.device)
    x.requires_grad_()
    from convsmith.pooling import POOLINGS

    arms = {}
    for entry in POOLINGS:
        layer = entry.value(d).to(bench.device)
        with torch.no_grad():
            g = torch.randn_like(layer(x))
        arms[entry.name] = _both_ways(layer, x, g)
    bench.compare(
        f"every pooling, forward and backward, {side} x {side} map of {d} channels",
        arms,
        baseline="average",
        rounds=3,
        seconds=15.0,
        settings={"batch": batch, "channels": d, "dtype": "float32"},
    )
    a = covariance(x.detach())
    bench.compare(
        "roots of 256 x 256 covariances, forward only",
        {
            f"{method} ({n})": partial(matrix_sqrt, a, method=method, iterations=n)
            for method, n in (
                ("newton-schulz", 5),
                ("newton-schulz", 10),
                ("polar-express", 7),
                ("eigh", 1),
            )
        },
        baseline="newton-schulz (5)",
        rounds=5,
        seconds=8.0,
        settings={"batch": batch},
    )
