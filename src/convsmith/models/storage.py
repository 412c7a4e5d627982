"""A model on disk: ``model.safetensors`` beside ``model.json``, the recipe that rebuilds its structure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from convsmith.arguments import checked, integer
from convsmith.data.preprocessing import DataDescription, Preprocessing
from convsmith.errors import InvalidArgument, refusing
from convsmith.files import replacing, write_json
from convsmith.inspection.features import class_count, head_names, new_head
from convsmith.inspection.modes import unwrap
from convsmith.models import sources
from convsmith.models.loaded import LoadedModel, classes_of
from convsmith.models.recipes import FORMAT, ModelRecipe, build
from convsmith.models.weights import fit, load_into, read_weights

__all__ = ["LoadedModel", "ModelRecipe", "build", "load", "load_model", "save_model"]

STEM = sources.STEM


@checked
def save_model(folder: Path | str, model: nn.Module, recipe: ModelRecipe | None = None) -> Path:
    """Write ``model.safetensors`` and ``model.json`` into a folder; return the weights file.

    Wrappers (DataParallel, DDP, compiled) are left out. Both files are written under another name first and renamed,
    the recipe last, so a kill leaves no half file. ``recipe`` None: that of a network made by `timm.create_model` or
    `convsmith.pooling.attach`; one without a preprocessing or compression gets the network's.

    Raises:
        InvalidArgument: no recipe for a network that no name builds.

    Examples:
        >>> weights = save_model("net", model)
        >>> same = load_model("net").model
    """
    from convsmith.compression import compression_history, packed_state

    model = unwrap(model)
    recipe = sources.recipe_of(model) if recipe is None else recipe
    if not recipe.compression:
        recipe = replace(recipe, compression=tuple(compression_history(model)))
    if recipe.preprocessing is None:
        recipe = replace(recipe, preprocessing=_preprocessing(model, recipe).to_json())
    folder = Path(folder)
    if recipe.compression:
        tensors = packed_state(model)
    else:
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    file = folder / f"{STEM}.safetensors"
    with replacing(file) as draft:
        save_file(tensors, draft, metadata={"format": "pt"})
    write_json(folder / f"{STEM}.json", {"format": FORMAT, **recipe.to_json()})
    return file


@checked
def load(
    model: str | Path, *, weights: str | Path | None = None, num_classes: int | None = None, device: str = "cpu"
) -> LoadedModel:
    """Load a network that is ready to predict: `load_model`, with timm's published weights for a bare name.

    Raises:
        InvalidArgument: as `load_model`; a name whose weights cannot be had.
    """
    bare = weights is None and sources.is_name(model)
    return load_model(model, weights=weights, num_classes=num_classes, device=device, pretrained=bare)


@checked
def load_model(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    pretrained: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> LoadedModel:
    """Load a model, in eval mode, with its transform and class names.

    Args:
        model: a timm name; a run folder, or a weights file with its recipe beside it; ``hf-hub:ID``; a local folder of
            timm's (``config.json``); ``package.module:factory``, a callable that returns a network.
        weights: a file, or a folder with ``model.safetensors``, whose weights go into ``model``: of timm, torchvision
            or a training script (see `convsmith.models.weights`). None: the model's own.
        num_classes: classes wanted: a head of another size is made anew, and a note says so.
        in_chans: channels wanted; a saved model must have them.
        pretrained: for a timm name, download its published weights.
        device: where the model goes.
        kwargs: more arguments of `timm.create_model` or of the factory.

    Raises:
        InvalidArgument: an unknown name (with close matches), a missing or unreadable file, weights of another model
            (named by its first differing tensors), or a saved model built with other arguments than asked for.

    Examples:
        >>> load_model("cs_resnet20", num_classes=5).model.num_classes
        5
    """
    if num_classes is not None:
        integer("num_classes", num_classes, least=0)
    with refusing("this machine does not have the device", RuntimeError, AssertionError, argument="device"):
        torch.empty(0, device=device)
    asked = {**({} if in_chans is None else {"in_chans": in_chans}), **kwargs}
    given = None if weights is None else sources.file_of(weights)
    source = sources.resolve(
        model, asked, pretrained=pretrained and given is None, num_classes=num_classes, weights_file=given
    )
    network, recipe, file = source.network, source.recipe, given or source.file
    built, notes = class_count(network), []
    if file is not None and recipe.compression:
        _load_compressed(network, file, num_classes)
    elif file is not None:
        heads = head_names(network)
        notes += load_into(network, fit(network, read_weights(file), file=str(file)), num_classes, heads)
    elif num_classes is not None and getattr(network, "num_classes", None) != num_classes:
        notes.append(new_head(network, num_classes))
    count = class_count(network)
    if count != built:
        recipe = sources.with_classes(recipe, count)
    preprocessing = _preprocessing(network, recipe, file)
    names = classes_of(network, recipe, source.labels, count)
    return LoadedModel(network.to(device).eval(), recipe, preprocessing, names, tuple(notes))


def _load_compressed(model: nn.Module, file: Path, num_classes: int | None) -> None:
    from convsmith.compression import load_packed_state

    load_packed_state(model, read_weights(file))
    count = class_count(model)
    if num_classes not in (None, count):
        rule = "the saved model has another number of classes"
        hint = "a compressed network keeps its head; give the plain network another one, then compress it"
        raise InvalidArgument(rule, argument=f"num_classes={num_classes}", given=f"{count} in {file.parent}", hint=hint)


def _preprocessing(model: nn.Module, recipe: ModelRecipe, file: Path | None = None) -> Preprocessing:
    """Return the recipe's own; else that of the data it was trained on; of torchvision's file; else the network's."""
    if recipe.preprocessing is not None:
        return Preprocessing.from_json(recipe.preprocessing)
    about = recipe.description
    if about is not None:
        return DataDescription.from_json(about).preprocessing
    published = None if file is None else sources.torchvision_preprocessing(model, file)
    return published or Preprocessing.from_model(model)
