"""A model on disk: ``model.safetensors`` beside ``model.json``, the recipe that rebuilds its structure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from convsmith.errors import InvalidArgument, close_matches, differing_tensors

FORMAT = 1
STEM = "model"


@dataclass(frozen=True)
class ModelRecipe:
    """How to build a model's structure: a timm name, then a pooling, then compression steps, in this order.

    ``kwargs`` are `timm.create_model`'s; ``pooling`` those of `convsmith.pooling.attach`, None for the model's own;
    ``compression`` is what `convsmith.compression.restore_structure` reads; ``description`` is the training data's
    (``DataDescription.to_json``), None if there was none. Everything is plain JSON.
    """

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    pooling: Mapping[str, Any] | None = None
    compression: tuple[Mapping[str, Any], ...] = ()
    description: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "compression", tuple(self.compression))
        try:
            json.dumps(self.to_json(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(
                "a recipe holds only what JSON can hold", argument="ModelRecipe", given=str(error)
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that JSON can hold; `from_json` reads it back."""
        return {**asdict(self), "compression": [dict(step) for step in self.compression]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelRecipe:
        """Read what `to_json` wrote."""
        return cls(**{f.name: value[f.name] for f in fields(cls) if f.name in value})


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, its recipe, and the description of the data it was trained on (None if unknown)."""

    model: nn.Module
    recipe: ModelRecipe
    description: Mapping[str, Any] | None


def build(recipe: ModelRecipe, *, pretrained: bool = False) -> nn.Module:
    """Build the structure of a recipe, with fresh weights (or timm's published ones before pooling and compression).

    Raises:
        InvalidArgument: an unknown model name, with close matches; arguments the model does not take.
    """
    name = recipe.name.split(".")[0]
    if not timm.is_model(name) and not recipe.name.startswith(("hf-hub:", "hf_hub:")):
        raise InvalidArgument(
            "no model has this name",
            argument="model",
            given=repr(recipe.name),
            hint=close_matches(name, timm.list_models()),
        )
    try:
        model = timm.create_model(recipe.name, pretrained=pretrained, **recipe.kwargs)
    except TypeError as error:
        raise InvalidArgument(
            "the model does not take these arguments",
            argument=recipe.name,
            given=", ".join(f"{k}={v!r}" for k, v in recipe.kwargs.items()),
            hint=str(error),
        ) from error
    if recipe.pooling is not None:
        from convsmith.pooling import attach

        model = attach(model, **recipe.pooling)
    if recipe.compression:
        from convsmith.compression import restore_structure

        model = restore_structure(model, [dict(step) for step in recipe.compression])
    return model


def save_model(folder: Path | str, model: nn.Module, recipe: ModelRecipe) -> Path:
    """Write ``model.safetensors`` and ``model.json`` into a folder; return the weights file.

    Both are written under another name first and renamed, the recipe last, so a kill leaves no half file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.compression:
        from convsmith.compression import packed_state

        weights = packed_state(model)
    else:
        weights = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    file = folder / f"{STEM}.safetensors"
    draft = folder / f".{STEM}.safetensors.writing"
    save_file(weights, draft, metadata={"format": "pt"})
    draft.replace(file)
    text = json.dumps({"format": FORMAT, **recipe.to_json()}, indent=1)
    draft = folder / f".{STEM}.json.writing"
    draft.write_text(text)
    draft.replace(folder / f"{STEM}.json")
    return file


def load_model(
    spec: str | Path,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    name: str | None = None,
    pretrained: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> LoadedModel:
    """Load a model from a timm name, a run folder or a weights file.

    Args:
        spec: what to load. A weights file needs its ``.json`` recipe beside it, or ``name``.
        num_classes: for a timm name, what to build; for a saved model, what it must have.
        in_chans: likewise.
        name: the timm name for a weights file without a recipe.
        pretrained: for a timm name, download its published weights.
        device: where the model goes.
        kwargs: more arguments of `timm.create_model`, for a timm name or with ``name``.

    Raises:
        InvalidArgument: an unknown name (with close matches), a missing or unreadable file, weights of another model
            (named by its first differing tensors), or a saved model with other classes or channels than asked for.
    """
    path = Path(spec)
    asked = {k: v for k, v in (("num_classes", num_classes), ("in_chans", in_chans)) if v is not None}
    if not path.exists() and path.suffix != ".safetensors" and "/" not in str(spec).removeprefix("hf-hub:"):
        recipe = ModelRecipe(str(spec), {**asked, **kwargs})
        return LoadedModel(build(recipe, pretrained=pretrained).to(device).eval(), recipe, None)
    file = _weights_file(path)
    recipe_file = file.with_suffix(".json")
    if recipe_file.is_file():
        recipe = _read_recipe(recipe_file)
        if name is not None and name != recipe.name:
            raise InvalidArgument(
                "the saved model has another name", argument=name, given=f"{recipe.name} in {recipe_file}"
            )
        for key, value in {**asked, **kwargs}.items():
            if key in recipe.kwargs and recipe.kwargs[key] != value:
                raise InvalidArgument(
                    "the saved model was built differently",
                    argument=f"{key}={value!r}",
                    given=f"{key}={recipe.kwargs[key]!r} in {recipe_file}",
                    hint="use data that fits the model, or train another one",
                )
    elif name is not None:
        recipe = ModelRecipe(name, {**asked, **kwargs})
    else:
        raise InvalidArgument(
            "a weights file needs its recipe beside it",
            argument=str(file),
            given=f"no {recipe_file.name} in {file.parent}",
            hint="pass the timm name of the model it belongs to (name=...)",
        )
    model = build(recipe)
    classes = getattr(model, "num_classes", num_classes)
    if num_classes is not None and classes != num_classes:
        raise InvalidArgument(
            "the saved model has another number of classes", argument=num_classes, given=f"{classes} in {recipe_file}"
        )
    _load_weights(model, file, packed=bool(recipe.compression))
    return LoadedModel(model.to(device).eval(), recipe, recipe.description)


def _weights_file(path: Path) -> Path:
    """Return the weights file that a path means."""
    if path.is_dir():
        file = path / f"{STEM}.safetensors"
        if not file.is_file():
            raise InvalidArgument(
                "this folder holds no saved model",
                argument=str(path),
                given=f"no {file.name} in it",
                hint="name the folder of a finished run, a weights file, or a model name",
            )
        return file
    if not path.is_file():
        raise InvalidArgument(
            "there is no such file or folder", argument=str(path), hint="name a run folder or a timm model"
        )
    if path.suffix != ".safetensors":
        raise InvalidArgument(
            "weights are read from safetensors files only",
            argument=str(path),
            given=f"a {path.suffix or 'nameless'} file",
            hint="convert it: safetensors.torch.save_file(state_dict, path)",
        )
    return path


def _read_recipe(file: Path) -> ModelRecipe:
    try:
        value = json.loads(file.read_text())
        form = value["format"]
        recipe = ModelRecipe.from_json(value)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InvalidArgument(
            "this is not a model recipe", argument=str(file), given=f"{type(error).__name__}: {error}"
        ) from error
    if form != FORMAT:
        raise InvalidArgument(f"this version reads recipe format {FORMAT}", argument=str(file), given=f"format {form}")
    return recipe


def _load_weights(model: nn.Module, file: Path, *, packed: bool) -> None:
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InvalidArgument("this weights file cannot be read", argument=str(file), given=str(error)) from error
    if packed:
        from convsmith.compression import load_packed_state

        load_packed_state(model, weights)
        return
    differing = differing_tensors(
        {k: v.shape for k, v in model.state_dict().items()}, {k: v.shape for k, v in weights.items()}
    )
    if differing:
        raise InvalidArgument(
            "these weights belong to another model",
            argument=f"load {file} into {type(model).__name__}",
            given=differing,
            hint="name the model and arguments that the weights were saved with",
        )
    model.load_state_dict(weights)
