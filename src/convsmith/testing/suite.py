"""How a suite runs: every check by its name, all failures told together, exceptions declared with a reason."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convsmith.errors import ConvsmithError, InvalidArgument, close_matches

Checks = Mapping[str, Callable[[], None]]


class Nonconforming(ConvsmithError, AssertionError):
    """An object breaks rules of its kind; the message lists every broken one."""


@dataclass(frozen=True)
class Conformance:
    """What a suite found: ``passed`` checks by name, and the ``excepted`` ones with the reason that was declared."""

    name: str
    passed: tuple[str, ...]
    excepted: Mapping[str, str]


def run_checks(name: str, checks: Checks, exceptions: Mapping[str, str] | None = None) -> Conformance:
    """Run all ``checks`` of the object called ``name``.

    Args:
        name: for messages.
        checks: functions that raise where a rule is broken.
        exceptions: reasons by check, for rules that this object cannot follow; one that it does follow is refused, so
            that no exception outlives its reason.

    Raises:
        Nonconforming: names every check that failed, with its error.
        InvalidArgument: an exception for a check that does not exist.
    """
    exceptions = dict(exceptions or {})
    for key in exceptions:
        if key not in checks:
            raise InvalidArgument(
                "no check has this name", argument="exceptions", given=repr(key), hint=close_matches(key, checks)
            )
    broken, passed = [], []
    for key, check in checks.items():
        error = _error_of(check)
        if error is None and key in exceptions:
            broken.append(f"{key}: passes, though an exception is declared ({exceptions[key]})")
        elif error is None:
            passed.append(key)
        elif key not in exceptions:
            broken.append(f"{key}: {error}")
    if broken:
        raise Nonconforming(f"{name} breaks {len(broken)} of {len(checks)} rules\n  " + "\n  ".join(broken))
    return Conformance(name, tuple(passed), exceptions)


def _error_of(check: Callable[[], None]) -> str | None:
    try:
        check()
    except Exception as error:  # noqa: BLE001  (whatever a check raises is a finding)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split()) or type(error).__name__
        return f"{type(error).__name__} at {frame.name}:{frame.lineno}: {text[:300]}"
    return None


def require_that(truth: bool, rule: str, given: object = "") -> None:
    """Raise AssertionError with ``rule`` and what was found unless ``truth``."""
    if not truth:
        raise AssertionError(f"{rule}; found {given}" if given != "" else rule)


def require_refusal(call: Callable[[], Any], argument: str | None = None) -> None:
    """Raise AssertionError unless ``call`` raises `InvalidArgument` (with ``argument``: that names it)."""
    try:
        result = call()
    except InvalidArgument as error:
        if argument is not None and argument not in f"{error.argument} {error.rule}":
            raise AssertionError(f"the refusal names {error.argument!r}, not {argument!r}: {error.rule}") from None
        return
    raise AssertionError(f"bad input for {argument or 'the call'} was taken and gave {str(result)[:80]}")


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return ``|found - wanted| / |wanted|``, in float64."""
    size = wanted.detach().double().norm()
    return float((found.detach().double() - wanted.detach().double()).norm() / size.clamp(min=1e-300))


def near(found: Tensor, wanted: Tensor, bound: float) -> bool:
    """Tell whether two tensors are the same, or their relative error is below ``bound``."""
    return bool(torch.equal(found.double(), wanted.double())) or relative_error(found, wanted) < bound


@contextmanager
def untouched(*tensors: Tensor) -> Iterator[None]:
    """Raise AssertionError if a block changes a tensor or draws from torch's or numpy's global generators."""
    before = [t.detach().clone() for t in tensors]
    state, numbers = torch.get_rng_state(), _numpys()
    yield
    for n, (old, new) in enumerate(zip(before, tensors, strict=True)):
        same = torch.equal(torch.nan_to_num(old), torch.nan_to_num(new.detach()))
        require_that(same, "arguments are never changed", f"argument {n} changed")
    require_that(torch.equal(state, torch.get_rng_state()), "torch's global generator is left alone")
    require_that(numbers == _numpys(), "numpy's global generator is left alone")


def _numpys() -> bytes:
    # the legacy generator is the one that libraries draw from
    return pickle.dumps(np.random.get_state())  # noqa: NPY002


def wrong_tensors(good: Tensor) -> dict[str, Any]:
    """Return values that are no such tensor as ``good``, by what is wrong with them."""
    return {
        "None": None,
        "a string": "images",
        "a list": good.tolist(),
        "a numpy array": good.detach().numpy(),
        "integers": good.long(),
        "complex numbers": good.to(torch.cfloat),
        "a sparse tensor": good.detach().to_sparse(),
        "a meta tensor": good.to("meta"),
        "one dimension": good.flatten(),
    }
