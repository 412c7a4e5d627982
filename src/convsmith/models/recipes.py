"""How to build a network again: a timm name, its arguments, a pooling, compression steps; checked at the door."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from convsmith.data.preprocessing import DataDescription, Preprocessing
from convsmith.errors import ConvsmithError, InvalidArgument, close_matches, refusing
from convsmith.files import read_json
from convsmith.offline import cache_alone

FORMAT = 1
_LARGEST = 10**6
#: arguments of timm's model factory that every network takes, and that change no file and open none
_EVERYWHERE = frozenset(["num_classes", "in_chans", "global_pool", "drop_rate", "exportable", "scriptable"])
#: arguments that name a file, a download, or something that is no classifier
_NEVER = frozenset(
    [
        *("cache_dir", "checkpoint_path", "features_only", "model_cfg", "pretrained", "pretrained_backbone"),
        *("pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "kwargs", "self", "variant", "name"),
    ]
)
#: what wrong values in a recipe make the builders of networks raise
BUILDING = (
    *(TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError),
    *(RuntimeError, ArithmeticError, MemoryError, NotImplementedError, RecursionError),
)


@dataclass(frozen=True)
class ModelRecipe:
    """How to build a model's structure: a timm name, then a pooling, then compression steps, in this order.

    ``kwargs`` are the network's own arguments; ``pooling`` those of `convsmith.pooling.attach`, None for the model's
    own; ``compression`` is what `convsmith.compression.restore_structure` reads; ``description`` is the training data's
    (``DataDescription.to_json``), None if there was none; ``preprocessing`` is that of the network
    (``Preprocessing.to_json``), None for what its structure and the description say. Everything is plain JSON.

    Raises:
        InvalidArgument: something that JSON cannot hold; arguments that the network does not take or that name files.
    """

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    pooling: Mapping[str, Any] | None = None
    compression: tuple[Mapping[str, Any], ...] = ()
    description: Mapping[str, Any] | None = None
    preprocessing: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "compression", tuple(self.compression))
        with refusing("a recipe holds only what JSON can hold", TypeError, ValueError, argument="ModelRecipe"):
            json.dumps(self.to_json(), allow_nan=False)
        check_arguments(self.name, self.kwargs)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that JSON can hold; `from_json` reads it back."""
        return {**asdict(self), "compression": [dict(step) for step in self.compression]}

    @classmethod
    def from_json(cls, value: object, *, factory: str | None = None) -> ModelRecipe:
        """Read what `to_json` wrote; refuse everything else before anything is built.

        A recipe never calls code of its own choice: one that names a factory is read only if ``factory`` names it too.

        Raises:
            InvalidArgument: a missing or unknown entry, one of another type, numbers beyond 10^6, another format.
        """
        found = _mapping("the recipe", value)
        form = found.pop("format", FORMAT)
        if form != FORMAT or isinstance(form, bool):
            raise InvalidArgument(f"this version reads recipe format {FORMAT}", argument="format", given=repr(form))
        known = [f.name for f in fields(cls)]
        for key in found:
            if key not in known:
                raise InvalidArgument("a recipe has no such entry", argument=key, hint=close_matches(key, known))
        name = found.get("name")
        if not isinstance(name, str) or not name or "/" in name or not name.isprintable():
            raise InvalidArgument("a recipe names a network of timm's registry", argument="name", given=repr(name)[:80])
        if factory is None or name != factory:
            hint = f"it was built by {name[:80]}: load that, with this as weights" if ":" in name else None
            if hint is not None:
                raise InvalidArgument("a recipe calls no factory by itself", argument="name", given=name, hint=hint)
            check_name(name)
        kwargs = _plain("kwargs", _mapping("kwargs", found.get("kwargs", {})))
        pooling, description = found.get("pooling"), found.get("description")
        preprocessing = found.get("preprocessing")
        if pooling is not None:
            pooling = _plain("pooling", _mapping("pooling", pooling))
        steps = found.get("compression", ())
        if not isinstance(steps, list | tuple):
            raise InvalidArgument("a list of steps", argument="compression", given=repr(steps)[:80])
        compression = tuple(_mapping("a compression step", step) for step in steps)
        if description is not None:
            description = _mapping("description", description)
            with refusing("the description cannot be read", *BUILDING, argument="description"):
                DataDescription.from_json(description)
        if preprocessing is not None:
            preprocessing = Preprocessing.from_json(preprocessing).to_json()
        return cls(name, kwargs, pooling, compression, description, preprocessing)


@contextmanager
def named(file: Path, before: str = "") -> Iterator[None]:
    """Make a refusal name ``file``, with what it named itself beside what was given; ``before`` precedes its rule."""
    try:
        yield
    except ConvsmithError as error:
        given = "; ".join(str(part) for part in (error.argument, error.given) if part is not None)
        rule = before + error.rule
        raise InvalidArgument(rule, argument=str(file), given=given or None, hint=error.hint) from error


def read_recipe(file: Path, *, factory: str | None = None) -> ModelRecipe:
    """Read a recipe file; whatever is wrong with it is one `InvalidArgument` that names the file."""
    with named(file, "this is not a model recipe: "):
        return ModelRecipe.from_json(read_json(file, "the recipe"), factory=factory)


def check_name(name: str) -> None:
    """Refuse a name that timm does not know, with close matches."""
    base = name.split(".")[0]
    if not timm.is_model(base):
        near = close_matches(base, timm.list_models())
        lists = "convsmith models '*' lists all; a saved model is a folder or file"
        hint = near if near.startswith("did you") else lists
        raise InvalidArgument("no model has this name", argument="model", given=repr(name), hint=hint)


def check_arguments(name: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that the network ``name`` does not take, and those that name files or downloads."""
    base = name.split(".")[0]
    if not timm.is_model(base):
        return
    known = accepted_arguments(base)
    for key in kwargs:
        if key not in known:
            rule = "a recipe opens no other file" if key in _NEVER else "the model does not take these arguments"
            given = f"{key}={kwargs[key]!r}"[:120]
            raise InvalidArgument(rule, argument=name, given=given, hint=close_matches(str(key), known))


@lru_cache(maxsize=64)
def accepted_arguments(base: str) -> frozenset[str]:
    """Return the arguments of a registered network: those of the classes and builders of the file that defines it."""
    module = sys.modules[timm.models.model_entrypoint(base).__module__]
    own = module.__name__.startswith("convsmith.")
    found = set(_EVERYWHERE)
    for value in vars(module).values():
        network = inspect.isclass(value) and issubclass(value, nn.Module)
        builder = own and inspect.isfunction(value) and value.__module__ == module.__name__
        if network or builder:
            found.update(inspect.signature(value).parameters)
    backbone = base.removesuffix("_isqrt")
    if own and backbone != base:
        found |= accepted_arguments(backbone)
    return frozenset(found - _NEVER)


def build(recipe: ModelRecipe, *, pretrained: bool = False) -> nn.Module:
    """Build the structure of a recipe, with fresh weights (or timm's published ones before pooling and compression).

    Raises:
        InvalidArgument: an unknown model name, with close matches; arguments the model does not take.
    """
    check_name(recipe.name)
    hint = "check the name (convsmith models --pretrained PATTERN) and the network connection"
    had = refusing("the published weights cannot be had", OSError, RuntimeError, argument=recipe.name, hint=hint)
    create = had(cache_alone()(timm.create_model)) if pretrained else timm.create_model
    with refusing("the model does not take these arguments", TypeError, argument=recipe.name):
        model = create(recipe.name, pretrained=pretrained, **recipe.kwargs)
    return with_steps(model, recipe)


def with_steps(model: nn.Module, recipe: ModelRecipe) -> nn.Module:
    """Return a plain network with the recipe's pooling and compression steps."""
    if recipe.pooling is not None:
        from convsmith.pooling import attach

        model = attach(model, **recipe.pooling)
    if recipe.compression:
        from convsmith.compression import restore_structure

        model = restore_structure(model, [dict(step) for step in recipe.compression])
    return model


def build_from_file(recipe: ModelRecipe, file: Path, shapes: Mapping[str, Sequence[int]]) -> nn.Module:
    """Build the structure of a recipe that was read from ``file``; its builders' refusals are one error.

    ``shapes`` are those of the weights: a structure whose tensors are far larger is refused before it is allocated.
    """
    rule = "this recipe cannot be built"
    with refusing(rule, *BUILDING, argument=str(file)), named(file, f"{rule}: "):
        if not recipe.compression:
            with torch.device("meta"):
                plain = timm.create_model(recipe.name, **recipe.kwargs)
            size = sum(p.numel() for p in plain.parameters())
            stored = sum(map(math.prod, shapes.values()))
            if size > 4 * stored + 10**8:
                raise InvalidArgument("its network is far larger than the weights beside it", given=f"{size} numbers")
        return build(recipe)


def _mapping(what: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidArgument("a mapping of names is needed", argument=what, given=repr(value)[:80])
    return dict(value)


def _plain(what: str, value: Any) -> Any:
    """Return a JSON value whose numbers and texts are of a size that a network can have."""
    if isinstance(value, Mapping):
        return {key: _plain(f"{what}.{key}", item) for key, item in _mapping(what, value).items()}
    if isinstance(value, list | tuple) and len(value) <= 1000:
        return [_plain(what, item) for item in value]
    number = isinstance(value, int | float) and abs(value) <= _LARGEST
    if value is None or number or (isinstance(value, str) and len(value) <= 200):
        return value
    raise InvalidArgument("not a plain value, or one too large", argument=what, given=repr(value)[:80])
