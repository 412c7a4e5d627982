"""What MODEL may mean: a timm name, a run folder, a weights file, the hub, timm's local folder, somebody's factory."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import timm
from torch import nn

from convsmith.data.preprocessing import Preprocessing
from convsmith.errors import InvalidArgument, refusing
from convsmith.inspection.feature_maps import input_shape
from convsmith.models import recipes, weights
from convsmith.models.recipes import BUILDING, ModelRecipe
from convsmith.offline import cache_alone
from convsmith.pooling.classifier import ATTACHED

STEM = "model"
_HUB = ("hf-hub:", "hf_hub:")
_LOCAL = "local-dir:"
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass
class Source:
    """A structure that was found, its recipe, the weights file that belongs to it, and class names found there."""

    network: nn.Module
    recipe: ModelRecipe
    file: Path | None = None
    labels: tuple[str, ...] | None = None


def is_name(spec: str | Path) -> bool:
    """Tell whether MODEL is a name of timm's registry and nothing on disk, on the hub, or importable."""
    text = str(spec)
    return not (Path(text).exists() or ":" in text or "/" in text or Path(text).suffix in weights.SUFFIXES)


def resolve(
    spec: str | Path, asked: Mapping[str, Any], *, pretrained: bool, num_classes: int | None, weights_file: Path | None
) -> Source:
    """Build the structure that ``spec`` means, its weights still those of a fresh network unless ``pretrained``.

    ``asked`` are arguments of the network; a saved model must have been built with them. ``weights_file`` is what will
    be loaded: a recipe beside it counts for a factory.
    """
    if not isinstance(spec, str | Path):
        given = type(spec).__name__
        raise InvalidArgument("a name, a path or package.module:factory", argument="model", given=given)
    text = str(spec)
    if text.startswith(_HUB):
        return _from_hub(text, asked)
    path = Path(text.removeprefix(_LOCAL))
    if path.is_dir():
        return _from_folder(path, asked)
    if path.is_file():
        return _from_file(path, asked)
    if _FACTORY.fullmatch(text):
        return _from_factory(text, asked, weights_file)
    if not is_name(text):
        hint = "name a run folder or a timm model"
        raise InvalidArgument("there is no such file or folder", argument=text, hint=hint)
    named = {**({} if num_classes is None else {"num_classes": num_classes}), **asked}
    recipe = ModelRecipe(text, named)
    return Source(recipes.build(recipe, pretrained=pretrained), recipe)


def file_of(path: str | Path) -> Path:
    """Return the file that ``weights`` means: itself, or ``model.safetensors`` in a folder."""
    found = Path(path)
    if not found.is_dir():
        return found
    for name in (f"{STEM}.safetensors", "pytorch_model.bin"):
        if (found / name).is_file():
            return found / name
    raise InvalidArgument("this folder holds no weights", argument=str(path), given=f"no {STEM}.safetensors in it")


def _from_folder(folder: Path, asked: Mapping[str, Any]) -> Source:
    if not (folder / f"{STEM}.json").is_file() and (folder / "config.json").is_file():
        return _from_timm_folder(folder, asked)
    file = folder / f"{STEM}.safetensors"
    if not file.is_file():
        given, hint = f"no {file.name} in it", "name the folder of a finished run, a weights file, or a model name"
        raise InvalidArgument("this folder holds no saved model", argument=str(folder), given=given, hint=hint)
    return _from_file(file, asked)


def _from_file(file: Path, asked: Mapping[str, Any]) -> Source:
    recipe_file = file.with_suffix(".json")
    if file.suffix not in weights.SUFFIXES:
        weights.read_weights(file)  # its refusal names what can be read
    if not recipe_file.is_file():
        rule = "a weights file needs its recipe beside it"
        hint = "name the network it belongs to as the model, and give this file as weights (--weights FILE)"
        raise InvalidArgument(rule, argument=str(file), given=f"no {recipe_file.name} in {file.parent}", hint=hint)
    recipe = recipes.read_recipe(recipe_file)
    shapes = weights.stored_shapes(file) if file.suffix == ".safetensors" else {}
    network = recipes.build_from_file(recipe, recipe_file, shapes)
    _check_asked(recipe, asked, recipe_file, network)
    return Source(network, recipe, file)


def _check_asked(recipe: ModelRecipe, asked: Mapping[str, Any], file: Path, network: nn.Module) -> None:
    had = {"in_chans": input_shape(network)[0], **recipe.kwargs}
    for key, value in asked.items():
        if key not in had or had[key] != (list(value) if isinstance(value, tuple) else value):
            rule = "the saved model was built differently"
            given = f"{key}={had[key]!r} in {file}" if key in had else f"no {key} in {file}"
            hint = "use data that fits the model, or train another one"
            raise InvalidArgument(rule, argument=f"{key}={value!r}", given=given, hint=hint)


def _from_timm_folder(folder: Path, asked: Mapping[str, Any]) -> Source:
    """Read ``config.json`` and the weights that timm's ``save_for_hf`` wrote."""
    file = folder / "config.json"
    with refusing("this is not timm's configuration of a model", OSError, ValueError, RecursionError, argument=file):
        value = json.loads(file.read_bytes())
    with refusing("this configuration cannot be built", *BUILDING, argument=file), recipes.named(file):
        recipe = _timm_recipe(value, asked)
        network = timm.create_model(f"{_LOCAL}{folder}", **_arguments(asked))
    return Source(network, recipe, file_of(folder), _labels(network))


def _from_hub(text: str, asked: Mapping[str, Any]) -> Source:
    from timm.models import load_model_config_from_hf

    hint = "check the name and the network connection; a local copy is a folder with config.json"
    rule = "this network cannot be had from the hub"
    with refusing(rule, OSError, ImportError, *BUILDING, argument=text, hint=hint), cache_alone():
        published, name, arguments = load_model_config_from_hf(text.partition(":")[2])
        value = {"architecture": name, "model_args": arguments or {}, "pretrained_cfg": published}
        recipe = _timm_recipe(value, asked)
        network = timm.create_model(text.replace("hf_hub:", "hf-hub:"), pretrained=True, **_arguments(asked))
    return Source(network, recipe, labels=_labels(network))


def _timm_recipe(value: object, asked: Mapping[str, Any]) -> ModelRecipe:
    """Return the recipe in one of timm's configurations, checked as our own recipes are."""
    if not isinstance(value, Mapping):
        raise InvalidArgument("this is not timm's configuration of a model", given=repr(value)[:80])
    arguments = value.get("model_args")
    merged = {**(arguments if isinstance(arguments, Mapping) else {}), **asked}
    if "num_classes" in value:
        merged.setdefault("num_classes", value["num_classes"])
    return ModelRecipe.from_json({"name": value.get("architecture"), "kwargs": merged})


def _arguments(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in asked.items() if value is not None}


def _labels(network: nn.Module) -> tuple[str, ...] | None:
    """Return the class names of timm's configuration: descriptions where it has them."""
    published = getattr(network, "pretrained_cfg", None) or {}
    names, described = published.get("label_names"), published.get("label_descriptions") or {}
    if not isinstance(names, list | tuple) or not isinstance(described, Mapping):
        return None
    return tuple(str(described.get(name, name)) for name in names)


def _from_factory(text: str, asked: Mapping[str, Any], file: Path | None) -> Source:
    """Call somebody's factory: a person has named it; a recipe beside the weights adds arguments and later steps."""
    recipe_file = None if file is None else file.with_suffix(".json")
    if recipe_file is None or not recipe_file.is_file():
        return Source(_called(text, asked), ModelRecipe(text, asked))
    recipe = recipes.read_recipe(recipe_file, factory=text)
    network = _called(text, recipe.kwargs)
    _check_asked(recipe, asked, recipe_file, network)
    return Source(recipes.with_steps(network, recipe), recipe)


def _called(text: str, asked: Mapping[str, Any]) -> nn.Module:
    module, _, name = text.partition(":")
    hint = "package.module:factory, importable here"
    with refusing("there is no such factory", ImportError, AttributeError, argument=text, hint=hint):
        factory: Any = attrgetter(name)(importlib.import_module(module))
    if not callable(factory):
        raise InvalidArgument("a factory is a callable", argument=text, given=type(factory).__name__)
    with refusing("the factory does not take these arguments", TypeError, argument=text):
        network = factory(**asked)
    if not isinstance(network, nn.Module):
        raise InvalidArgument("a factory returns a torch.nn.Module", argument=text, given=type(network).__name__)
    return network


def torchvision_preprocessing(network: nn.Module, file: Path) -> Preprocessing | None:
    """Return the transform of torchvision's published weights, known by the file's name; None for other files."""
    if not type(network).__module__.startswith("torchvision.models"):
        return None
    from torchvision.models import get_model_weights, list_models

    for name in list_models():
        for entry in get_model_weights(name):
            if entry.url.rpartition("/")[2] == file.name and hasattr(entry.transforms(), "crop_size"):
                return Preprocessing.from_torchvision(entry.transforms())
    return None


def with_classes(recipe: ModelRecipe, count: int | None) -> ModelRecipe:
    """Return the recipe of a network whose head now has ``count`` classes; the data of the others is left out."""
    if recipe.pooling is not None:
        return replace(recipe, pooling={**recipe.pooling, "num_classes": count}, description=None)
    return replace(recipe, kwargs={**recipe.kwargs, "num_classes": count}, description=None)


def recipe_of(model: nn.Module) -> ModelRecipe:
    """Return the recipe of a network made by `timm.create_model` or `convsmith.pooling.attach`.

    Raises:
        InvalidArgument: timm does not know by which name and arguments it was made.
    """
    pooling: Any = None
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if name == ATTACHED or (name is None and hasattr(model, "pooling_recipe")):
        pooling, model = model.pooling_recipe, model.backbone  # type: ignore[assignment]  # of a PooledClassifier
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if name is None or not hasattr(model, "_model_args"):
        rule = "no recipe builds this network again"
        hint = "give recipe=ModelRecipe(NAME, ARGUMENTS), or make the network by timm.create_model"
        raise InvalidArgument(rule, argument="save_model", given=type(model).__name__, hint=hint)
    return ModelRecipe(name, timm.models.get_model_args(model), pooling=pooling)
