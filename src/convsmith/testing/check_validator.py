"""The suite of validators: scores of an adapted model made from `Evidence`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from convsmith.adaptation.evaluation.validators import VALIDATORS, Evidence, measure, score
from convsmith.arguments import checked
from convsmith.testing.suite import (
    Conformance,
    require_refusal,
    require_refusals,
    require_that,
    run_checks,
    untouched,
    wrong_tensors,
)

CLASSES, WIDTH, SOURCE, TARGET, TRAINING = 4, 6, 30, 36, 40


def evidence(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return every field of `Evidence`, of images in four clusters that a classifier knows more or less."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    means = 2 * draw(CLASSES, WIDTH)
    readout = draw(WIDTH, CLASSES)

    def images(count: int, shift: float) -> tuple[Tensor, Tensor, Tensor]:
        labels = torch.arange(count) % CLASSES
        features = means[labels] + draw(count, WIDTH) + shift
        return features.to(dtype), (features @ readout).softmax(1).to(dtype), labels

    source, p_source, source_labels = images(SOURCE, 0.0)
    target, p_target, target_labels = images(TARGET, 0.5)
    return {
        "target_probabilities": p_target,
        "target_features": target,
        "source_probabilities": p_source,
        "source_features": source,
        "source_labels": source_labels,
        "source_training_features": images(TRAINING, 0.0)[0],
        "target_labels": target_labels,
    }


@checked
def check_validator(name: str, *, exceptions: Mapping[str, str] | None = None) -> Conformance:
    """Check the registered validator ``name``.

    It answers in a finite number, alike in float32 and float64, for non-contiguous tensors, for images in any order and
    for classes in any order; it changes nothing, draws no global random number, answers the same twice; it reads target
    labels only if it says so; and it refuses missing, empty, wrong or unequal evidence by name.

    Args:
        name: see `convsmith.adaptation.validators.available`.
        exceptions: reasons by check for rules that it cannot follow.

    Raises:
        Nonconforming: names every broken rule.

    Examples:
        >>> rules = check_validator("entropy").passed
    """
    entry = VALIDATORS.entry(name)
    needs: tuple[str, ...] = tuple(entry.traits["needs"])
    everything = evidence()
    needed = {key: everything[key] for key in needs}
    value = partial(score, name)

    def refuse(key: str, wrongs: list[Any]) -> None:
        require_refusals(lambda wrong: value(**{**needed, key: wrong}), wrongs, key)

    def traits_are_declared() -> None:
        known = {f.name for f in fields(Evidence)}
        require_that(set(needs) <= known, "needs are fields of Evidence", needs)
        for trait in ("higher_is_better", "uses_target_labels"):
            require_that(isinstance(entry.traits[trait], bool), f"{trait} is declared", entry.traits[trait])
        require_that(bool(entry.summary), "the first line of the docstring says what it is")

    def a_finite_number() -> None:
        found = value(**needed)
        require_that(type(found) is float and math.isfinite(found), "the answer is a finite float", found)
        require_that(value(**everything) == found, "evidence beside the needs changes nothing")
        require_that(measure(name, Evidence(**needed)) == found, "measure and score agree")

    def dtypes() -> None:
        exact = value(**needed)
        half = evidence(torch.float32)
        found = value(**{key: half[key] for key in needs})
        require_that(math.isclose(found, exact, rel_tol=1e-3, abs_tol=1e-4), "float32 is float64 to rounding", found)
        rough = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in needed.items()}
        require_that(math.isfinite(value(**rough)), "half precision gives a finite number")

    def layout() -> None:
        strided = {k: v.T.contiguous().T if v.dim() == 2 else v for k, v in needed.items()}
        require_that(_close(value(**strided), value(**needed)), "the memory's layout changes nothing")

    def repeatable() -> None:
        with untouched(*needed.values()):
            first = value(**needed)
        require_that(value(**needed) == first, "the same evidence gives the same number")

    def tensors_with_gradient() -> None:
        grown = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in needed.items()}
        require_that(value(**grown) == value(**needed), "tensors with gradient are read like others")

    def order_of_images() -> None:
        generator = torch.Generator().manual_seed(1)
        orders = {n: torch.randperm(n, generator=generator) for n in (SOURCE, TARGET, TRAINING)}
        mixed = {k: v[orders[len(v)]] for k, v in needed.items()}
        require_that(_close(value(**mixed), value(**needed), 1e-6), "the order of the images changes nothing")

    def order_of_classes() -> None:
        order = torch.tensor([2, 0, 3, 1])
        place = order.argsort()
        named = {}
        for key, tensor in needed.items():
            named[key] = tensor[:, order] if key.endswith("probabilities") else tensor
            named[key] = place[tensor] if key.endswith("labels") else named[key]
        require_that(_close(value(**named), value(**needed)), "the order of the classes changes nothing")

    def target_labels() -> None:
        used = entry.traits["uses_target_labels"]
        require_that(("target_labels" in needs) == used, "target labels are needed exactly if that is declared")

    def missing_or_empty_evidence() -> None:
        for key in needs:
            refuse(key, [None, needed[key][:0]])

    def wrong_kinds() -> None:
        for key in needs:
            good = needed[key]
            labels = ["labels", good.tolist(), good.double(), good[:, None]]
            refuse(key, labels if key.endswith("labels") else wrong_tensors(good))

    def unequal_numbers_of_images() -> None:
        for side in ("source", "target"):
            same = [k for k in needs if k.startswith(side) and "training" not in k]
            for key in same[1:]:
                require_refusal(partial(value, **{**needed, key: needed[key][:-1]}))

    checks = [traits_are_declared, a_finite_number, dtypes, layout, repeatable, tensors_with_gradient, order_of_images]
    checks += [order_of_classes, target_labels, missing_or_empty_evidence, wrong_kinds, unequal_numbers_of_images]
    return run_checks(f"the validator {name!r}", checks, exceptions)


def _close(a: float, b: float, relative: float = 1e-9) -> bool:
    return math.isclose(a, b, rel_tol=relative, abs_tol=relative)
