"""Weights of other programs: timm's, torchvision's and training scripts' files, fitted to a network's own names."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from convsmith.errors import InvalidArgument, differing_tensors, refusing
from convsmith.inspection.features import class_count, head_names, new_head

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")
#: where a training script keeps its state dict, averaged weights first
_NESTS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "model_state_dict", "module", "net")
_PREFIXES = ("_orig_mod.", "module.", "model.")
_COUNTER = "num_batches_tracked"
_UNREADABLE = "this weights file cannot be read"


@dataclass
class Fitted:
    """Weights under a network's names: ``head`` are those of another size; ``notes`` say what was done to them."""

    state: dict[str, Tensor]
    classes: int | None = None
    notes: list[str] = field(default_factory=list)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the state dict in a weights file: at the top or under the usual names, without wrappers' prefixes.

    ``.safetensors`` are read as they are; other files by ``torch.load(weights_only=True)``, which runs no code.

    Raises:
        InvalidArgument: no such file, a damaged one, one that needs code to be run, or one without tensors.
    """
    if not file.is_file():
        raise InvalidArgument("there is no such weights file", argument=str(file), hint="name a .safetensors or .pth")
    if file.suffix not in SUFFIXES:
        rule, given = "weights are read from these files only", f"a {file.suffix or 'nameless'} file"
        raise InvalidArgument(rule, argument=str(file), given=given, hint=", ".join(SUFFIXES))
    if file.suffix == ".safetensors":
        with _opened(file) as opened:
            found: Any = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    else:
        found = _unpickled(file)
    found = _nested(found)
    if not found:
        given = "no mapping of names to tensors at the top or under " + ", ".join(_NESTS)
        raise InvalidArgument("this file holds no state dict", argument=str(file), given=given)
    return found


def stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a ``.safetensors`` file from its header alone."""
    with _opened(file) as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    errors = (SafetensorError, OSError, ValueError, RuntimeError, TypeError, OverflowError)
    with refusing(_UNREADABLE, *errors, argument=file), safe_open(str(file), framework="pt") as opened:
        yield opened


def _unpickled(file: Path) -> Any:
    rule = "this file holds more than tensors and plain values, and reading it would run its code"
    hint = "save only the state dict: torch.save(model.state_dict(), path)"
    errors = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)
    with (
        refusing(_UNREADABLE, *errors, argument=file),
        refusing(rule, pickle.UnpicklingError, argument=file, hint=hint),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _nested(value: Any) -> dict[str, Tensor]:
    """Return the first mapping of names to tensors: under one of the usual entries, else at the top."""
    if not isinstance(value, Mapping):
        return {}
    for name in _NESTS:
        found = _nested(value.get(name))
        if found:
            return found
    return {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}


def _without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without ``module.``, ``_orig_mod.`` and ``model.`` before all their names, in any order.

    ``n_averaged`` of torch's averaged models is no weight.
    """
    found = {key: value for key, value in weights.items() if key != "n_averaged"}
    while found:
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in found)), None)
        if prefix is None:
            break
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return {key.replace("._orig_mod.", "."): value for key, value in found.items()}


def fit(model: nn.Module, weights: Mapping[str, Tensor], *, file: str) -> Fitted:
    """Return ``weights`` under the names of ``model``, whose head may have another size or be absent.

    Tried in this order: the same names, as they are and without wrappers' prefixes; the conversion that timm keeps for
    this family; the same number of tensors with the same shapes in the same order (a note says so).

    Raises:
        InvalidArgument: weights of another network, named by their first differing tensors.
    """
    heads = head_names(model)
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    plain = _without_prefix(weights)
    fitted = (
        _by_name(own, weights, heads)
        or _by_name(own, plain, heads)
        or _by_timms_rule(model, own, plain, heads)
        or _by_order(own, plain, heads)
    )
    if fitted is None:
        argument = f"load {file} into {type(model).__name__}"
        given = differing_tensors(model.state_dict(), plain)
        hint = "name the model and arguments that the weights were saved with"
        raise InvalidArgument("these weights belong to another model", argument=argument, given=given, hint=hint)
    return fitted


def _by_timms_rule(
    model: nn.Module, own: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], heads: tuple[str, ...]
) -> Fitted | None:
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return None
    try:
        fitted = _by_name(own, convert(dict(weights), model), heads)
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError, IndexError):
        return None  # timm's conversions assume one layout and fail in any way on others
    if fitted is not None:
        fitted.notes.append("names converted by timm's rule for this family")
    return fitted


def _by_name(
    own: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], heads: tuple[str, ...]
) -> Fitted | None:
    """Match equal names: all must be there but counters of batches (files of old torch lack them) and a whole head."""
    head = {k for k in own if k.rpartition(".")[0] in heads}
    counters = {k for k in own if k.endswith(_COUNTER)}
    missing = set(own) - set(weights) - counters
    if set(weights) - set(own) - {k for k in weights if k.endswith(_COUNTER)} or missing not in (set(), head):
        return None
    state = {k: v for k, v in weights.items() if k in own}
    return _checked(own, state, head)


def _by_order(
    own: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], heads: tuple[str, ...]
) -> Fitted | None:
    """Match the n-th tensor of the file with the network's n-th, if all shapes agree in order (the head's but one)."""
    counted = any(k.endswith(_COUNTER) for k in weights)
    names = [k for k in own if counted or not k.endswith(_COUNTER)]
    if len(names) != len(weights):
        return None
    head = {k for k in names if k.rpartition(".")[0] in heads}
    fitted = _checked(own, dict(zip(names, weights.values(), strict=True)), head)
    if fitted is not None:
        first = next(iter(weights))
        fitted.notes.append(
            f"names differ from the network's ({first} for {names[0]}): {len(names)} tensors taken in order,"
            " all shapes equal"
        )
    return fitted


def _checked(own: Mapping[str, tuple[int, ...]], state: dict[str, Tensor], head: set[str]) -> Fitted | None:
    """Check shapes; the head may differ in its first dimension alone, alike in all its tensors."""
    classes: set[int] = set()
    for key, value in state.items():
        if key in head and value.dim() == len(own[key]) and value.shape[1:] == own[key][1:]:
            classes.add(value.shape[0] if value.dim() else 0)
        elif tuple(value.shape) != own[key]:
            return None
    if len(classes) > 1:
        return None
    return Fitted(state, next(iter(classes), None))


def load_into(model: nn.Module, fitted: Fitted, num_classes: int | None, heads: tuple[str, ...]) -> list[str]:
    """Load fitted weights into ``model``, its head made anew where sizes differ; return what was done.

    ``num_classes`` None: the file's head decides. Otherwise a head of another size in the file is left out.
    """
    notes, state, has, own = list(fitted.notes), fitted.state, fitted.classes, class_count(model)
    if has is None and num_classes is None and heads:
        rule = "the file has no weights for the classifier"
        raise InvalidArgument(rule, argument="weights", hint="num_classes=N makes a new one")
    wanted = has if num_classes is None else num_classes
    if wanted is not None and (wanted != own or has != wanted):
        said = new_head(model, wanted)
        if has == wanted:
            said = f"the file's classifier has {has} classes where the network's has {own}: the file's is taken"
        elif has is not None:
            said += f"; the file's has {has} classes"
        if num_classes is None or has != wanted:
            notes.append(said)
    if has != wanted:
        state = {k: v for k, v in state.items() if k.rpartition(".")[0] not in heads}
    model.load_state_dict(state, strict=False)  # `fit` has compared the names; counters of batches may be absent
    return notes
