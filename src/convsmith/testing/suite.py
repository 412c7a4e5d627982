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
from convsmith.registry import fitted, setting_types

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


def require_settings(settings: Any, use: Callable[[dict[str, Any]], Any]) -> None:
    """Require a frozen dataclass, a class or a value; ``use`` must refuse unknown names and wrong values of fields."""
    about = getattr(settings, "__dataclass_params__", None)
    require_that(about is not None and about.frozen, "settings are a frozen dataclass", settings)
    require_refusal(lambda: use({"no_such_setting": 1}))
    for key, kind in setting_types(settings).items():
        wrongs = WRONG if fitted(None, kind)[0] else (None, *WRONG)
        require_refusals(lambda wrong, key=key: use({key: wrong}), wrongs, key)  # type: ignore[misc]


def run(model: nn.Module, maps: Tensor) -> Tensor:
    """Return what a network or layer gives on ``maps``, without gradients."""
    with torch.no_grad():
        found: Tensor = model(maps)
        return found


def require_gradients(module: nn.Module, loss: Tensor, *, every: bool = False) -> None:
    """Require finite gradients of ``loss`` for parameters of ``module``; for ``every`` one that is trained."""
    loss.backward()
    grown = [p.grad for p in module.parameters() if p.grad is not None]
    require_that(bool(grown) and all(bool(g.isfinite().all()) for g in grown), "there are finite gradients")
    missing = [key for key, p in module.named_parameters() if p.requires_grad and p.grad is None]
    require_that(not (every and missing), "every parameter gets a gradient", missing[:3])


def require_near(found: Tensor, wanted: Tensor, bound: float, rule: str) -> None:
    """Require that two tensors are the same, or ``|found - wanted| / |wanted|``, in float64, is below ``bound``."""
    a, b = found.detach().double(), wanted.detach().double()
    error = float((a - b).norm() / b.norm().clamp(min=1e-300))
    require_that(torch.equal(a, b) or error < bound, rule, error)


def other_layouts(x: Tensor) -> list[Tensor]:
    """Return maps [B, C, H, W] again, each time with another order in memory."""
    return [x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT, torch.stack([x, x], -1)[..., 0]]


def state_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of a module's state, by name."""
    return {key: value.shape for key, value in module.state_dict().items()}


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
