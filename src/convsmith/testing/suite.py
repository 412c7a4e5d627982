"""How a suite runs: every check by its name, all failures told together, exceptions declared with a reason."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convsmith.arguments import one_of
from convsmith.errors import ConvsmithError, InvalidArgument

Checks = Sequence[Callable[[], None]]
#: what no setting takes
WRONG = ("no such choice", object(), -1, float("nan"), [None])


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
        checks: functions that raise where the rule is broken that their name says.
        exceptions: reasons by check, for rules that this object cannot follow; one that it does follow is refused, so
            that no exception outlives its reason.

    Raises:
        Nonconforming: names every check that failed, with its error.
        InvalidArgument: an exception for a check that does not exist.
    """
    exceptions = dict(exceptions or {})
    named = {check.__name__.replace("_", " "): check for check in checks}
    for key in exceptions:
        one_of("exceptions", key, list(named))
    broken, passed = [], []
    for key, check in named.items():
        error = _error_of(check)
        if error is None and key in exceptions:
            broken.append(f"{key}: passes, though an exception is declared ({exceptions[key]})")
        elif error is None:
            passed.append(key)
        elif key not in exceptions:
            broken.append(f"{key}: {error}")
    if broken:
        raise Nonconforming(f"{name} breaks {len(broken)} of {len(named)} rules\n  " + "\n  ".join(broken))
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


def require_refusals(call: Callable[[Any], Any], wrongs: Iterable[Any], argument: str | None = None) -> None:
    """Require that ``call`` refuses every one of ``wrongs``; see `require_refusal`."""
    for wrong in wrongs:
        require_refusal(partial(call, wrong), argument)


def require_frozen(settings: Any) -> None:
    """Raise AssertionError unless ``settings``, a class or a value, are a frozen dataclass."""
    about = getattr(settings, "__dataclass_params__", None)
    require_that(about is not None and about.frozen, "settings are a frozen dataclass", settings)


def run(model: nn.Module, maps: Tensor) -> Tensor:
    """Return what a network or layer gives on ``maps``, without gradients."""
    with torch.no_grad():
        found: Tensor = model(maps)
        return found


def gradients_of(module: nn.Module, loss: Tensor) -> list[Tensor]:
    """Return the gradients of ``loss`` for the parameters of ``module``, which must be there and finite."""
    loss.backward()
    grown = [p.grad for p in module.parameters() if p.grad is not None]
    require_that(bool(grown) and all(bool(g.isfinite().all()) for g in grown), "there are finite gradients")
    return grown


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


def wrong_tensors(good: Tensor) -> list[Any]:
    """Return values that are no such tensor as ``good``: other types and kinds, another shape, a NaN."""
    spoilt = good.clone()
    spoilt[1].view(-1)[0] = torch.nan
    kinds = (good.long(), good.to(torch.cfloat), good.detach().to_sparse(), good.to("meta"), good.flatten())
    return ["images", good.tolist(), good.detach().numpy(), *kinds, spoilt]
