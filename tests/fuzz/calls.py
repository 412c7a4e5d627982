"""Public functions with what fits their arguments; a case replaces none, one or two of them by something else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from convsmith import adaptation, compression, interpretation, pooling
from tests.fuzz import values
from tests.fuzz.outcomes import Outcome, outcome


@dataclass(frozen=True)
class Target:
    """A function, strategies for its arguments, and whether float32 must agree with float64 on what it answers."""

    call: Callable[..., Any]
    fits: Mapping[str, st.SearchStrategy]
    tolerance: float | None = None


def tiny_network() -> nn.Module:
    """Two convolutions and a classifier of three classes, 3 channels in."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    ).eval()  # fmt: skip


NETWORK = tiny_network()
maps, rows, paired = values.features(4), values.features(2, 3), values.features(2, 3, 4)
images = st.integers(1, 3).map(lambda n: values.made((n, 3, 8, 8), "normal", n, torch.float32))
labels = st.integers(1, 3).map(lambda n: torch.arange(n) % 3)
small = st.integers(1, 6)


def _poolings() -> dict[str, Target]:
    def layer(name: str) -> Callable[..., Tensor]:
        def call(x: Tensor, in_channels: int) -> Tensor:
            torch.manual_seed(0)
            made = pooling.POOLINGS[name](in_channels).eval()
            return (made.to(x.dtype) if isinstance(x, Tensor) and x.is_floating_point() else made)(x)

        return call

    both = {"x": values.features(4, 5), "in_channels": st.just(5)}
    return {f"pooling.{name}": Target(layer(name), both) for name in pooling.available()}


TARGETS: dict[str, Target] = {
    **_poolings(),
    "covariance": Target(pooling.covariance, {"x": maps, "center": st.booleans()}, 1e-2),
    "matrix_sqrt": Target(
        pooling.matrix_sqrt,
        {
            "a": values.matrices(),
            "method": st.sampled_from(("newton-schulz", "eigh", "polar-express")),
            "iterations": small,
            "normalization": st.sampled_from(("trace", "frobenius")),
            "compensate": st.booleans(),
        },
        2e-2,
    ),
    "matrix_power": Target(
        pooling.matrix_power, {"a": values.matrices(), "exponent": st.sampled_from((0.25, 0.5, 1.0, 2))}, 2e-2
    ),
    "matrix_log": Target(pooling.matrix_log, {"a": values.matrices(), "ridge": st.sampled_from((1e-3, 1e-1))}, 2e-2),
    "isqrt_covariance": Target(
        pooling.isqrt_covariance,
        {"x": maps, "iterations": small, "side": st.sampled_from(("auto", "channels", "positions"))},
        2e-2,
    ),
    "power_covariance": Target(
        pooling.power_covariance, {"x": maps, "exponent": st.sampled_from((0.25, 0.5, 1.0))}, 2e-2
    ),
    "triu_vector": Target(pooling.triu_vector, {"a": values.matrices()}, 1e-5),
    "gaussian_embedding": Target(pooling.gaussian_embedding, {"x": maps, "ridge": st.sampled_from((0.0, 1e-3))}),
    "von_neumann_estimate": Target(
        pooling.von_neumann_estimate, {"s": values.matrices(), "theta": st.sampled_from((0.5, 0.75))}
    ),
    "brownian_covariance": Target(pooling.brownian_covariance, {"x": maps}),
    "mmd": Target(
        adaptation.mmd,
        {"source": rows, "target": rows, "estimator": st.sampled_from(("unbiased", "biased", "linear"))},
    ),
    "energy_distance": Target(adaptation.energy_distance, {"source": rows, "target": rows}),
    "coral": Target(adaptation.coral, {"source": rows, "target": rows}),
    "conditional_mmd": Target(
        adaptation.conditional_mmd,
        {
            name: paired
            for name, argument in inspect.signature(adaptation.conditional_mmd).parameters.items()
            if argument.default is inspect.Parameter.empty
        },
    ),
    "reverse_gradient": Target(adaptation.reverse_gradient, {"x": rows, "scale": st.floats(0, 2)}, 1e-6),
    "ramp": Target(adaptation.ramp, {"step": small, "length": small}),
    "class_weights": Target(adaptation.class_weights, {"target_probabilities": values.probabilities()}, 1e-5),
    "entropy": Target(adaptation.entropy, {"logits": rows}),
    "validators.score": Target(
        adaptation.validators.score,
        {
            "name": st.sampled_from(adaptation.validators.available()),
            "target_probabilities": values.probabilities(3),
            "target_features": values.features(2, 3),
        },
    ),
    "is_complementary": Target(
        compression.is_complementary,
        {"partitions": st.lists(st.lists(st.lists(small, min_size=1), min_size=1), min_size=1)},
    ),
    "balanced_partition": Target(compression.balanced_partition, {"channels": st.integers(1, 600), "layers": small}),
    "structures": Target(compression.structures, {"channels": st.integers(1, 64), "budget": st.integers(1, 4000)}),
    "interleaved": Target(
        lambda primary, members, x: compression.InterleavedGroupConv2d(primary, members)(x),
        {"primary": st.just(2), "members": st.just(3), "x": values.features(4, 6).map(torch.Tensor.float)},
    ),
    "composite_kernel": Target(
        compression.composite_kernel, {"module": st.builds(compression.InterleavedGroupConv2d, small, small)}
    ),
    "cost": Target(
        compression.cost,
        {"model": st.just(NETWORK), "input_size": st.sampled_from(((3, 8, 8), (1, 3, 8, 8), (3, 16, 9)))},
    ),
    "compress": Target(
        compression.compress,
        {
            "model": st.just(NETWORK),
            "method": st.sampled_from(("low-rank", "sparse", "ternary", "binary", "interleave")),
            "example": images,
            "keep_macs": st.sampled_from((None, 0.5, 0.9)),
        },
    ),
    "find_routes": Target(
        interpretation.find_routes,
        {
            "model": st.just(NETWORK),
            "images": images,
            "gamma": st.sampled_from((0.01, 0.05)),
            "steps": st.integers(1, 4),
            "mode": st.sampled_from(("converged", "paper")),
        },
    ),
    "score_units": Target(
        interpretation.score_units,
        {
            "model": st.just(NETWORK),
            "images": images,
            "method": st.sampled_from(("activation", "gradient-times-activation", "random")),
        },
    ),
    "attack": Target(
        interpretation.attack,
        {
            "model": st.just(NETWORK),
            "images": images,
            "labels": labels,
            "method": st.sampled_from(("fgsm", "ifgsm", "pgd")),
            "epsilon": st.sampled_from((0.01, 0.1)),
        },
    ),
    "attach": Target(
        pooling.attach,
        {
            "model": st.just(NETWORK),
            "pooling": st.sampled_from(("isqrt-cov", "mpn-cov")),
            "dim": small,
            "num_classes": small,
        },
    ),
}


@st.composite
def calls(draw) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """A target's name, its arguments, and which of them are not what fits."""
    name = draw(st.sampled_from(sorted(TARGETS)))
    fits = TARGETS[name].fits
    arguments = {key: draw(strategy) for key, strategy in fits.items()}
    spoiled = draw(st.lists(st.sampled_from(sorted(fits)), max_size=2, unique=True))
    arguments |= {key: draw(values.junk()) for key in spoiled}
    return name, arguments, tuple(spoiled)


def run(case: tuple[str, dict[str, Any], tuple[str, ...]]) -> Outcome:
    """Call, and judge what comes back."""
    name, arguments, spoiled = case
    target = TARGETS[name]
    text = f"{name}({', '.join(f'{k}={values.spelled(v)}' for k, v in arguments.items())})"
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, Tensor) and v.device.type != "meta"}

    def check(answer: Any) -> str | None:
        for key, held in before.items():
            if held.layout == torch.strided and not torch.equal(held.nan_to_num(), arguments[key].nan_to_num()):
                return f"the argument {key} was changed"
        if spoiled or target.tolerance is None:
            return _plain(answer, arguments)
        return _plain(answer, arguments) or _agrees(target, arguments, answer)

    torch.manual_seed(0)
    return outcome(text, lambda: target.call(**arguments), arguments, check)


def _plain(answer: Any, arguments: Mapping[str, Any]) -> str | None:
    """Finite in, finite out (as far as the type reaches); floating types stay what they were."""
    given = [v for v in arguments.values() if isinstance(v, Tensor) and v.is_floating_point()]
    found = [answer] if isinstance(answer, Tensor) else []
    for value in found:
        if not value.is_floating_point() or value.device.type == "meta":
            continue
        moderate = all(
            v.device.type != "meta" and bool((v.to_dense().abs() < 1e9).all()) and v.dtype.itemsize > 2 for v in given
        )
        if given and moderate and not bool(torch.isfinite(value).all()):
            return "finite in, not finite out"
        if given and all(v.dtype == torch.float64 for v in given) and value.dtype != torch.float64:
            return f"float64 in, {value.dtype} out"
    if isinstance(answer, float) and answer != answer:
        return "NaN"
    return None


def _agrees(target: Target, arguments: Mapping[str, Any], answer: Tensor) -> str | None:
    """Compare a float32 answer with the float64 one: not finite at the same places, close at the others."""
    tensors = {k: v for k, v in arguments.items() if isinstance(v, Tensor)}
    if any(v.dtype != torch.float32 or v.numel() == 0 for v in tensors.values()):
        return None
    exact = target.call(**(dict(arguments) | {k: v.double() for k, v in tensors.items()}))
    finite = exact.isfinite()
    if not torch.equal(finite, answer.isfinite()):
        return "float32 and float64 are not finite at different places"
    if not finite.any():
        return None
    scale = float(exact[finite].abs().max())
    error = float((answer.double() - exact)[finite].abs().max())
    if scale == 0:
        return None if error <= 1e-6 * max(float(v.abs().max()) for v in tensors.values()) ** 2 else f"{error} for 0"
    # what is smaller than float32's normal numbers has fewer digits
    enough = error <= target.tolerance * scale + torch.finfo(torch.float32).tiny
    return None if enough else f"float32 differs from float64 by {error / scale:.2g} of the largest entry"
