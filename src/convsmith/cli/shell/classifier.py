"""From ``--model`` and ``--pooling`` to a network that takes the images at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from convsmith.cli.shell import environment, terminal
from convsmith.cli.shell.method_settings import keyword_arguments, method_settings
from convsmith.cli.shell.options import Computation, option
from convsmith.errors import ConvsmithError, InvalidArgument

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convsmith.data import DataDescription, ImageSplit, Preprocessing
    from convsmith.models.storage import LoadedModel, ModelRecipe


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Computation):
    """Which network to train."""

    model: str = option("cs_resnet20", "timm name, or a run folder or weights file to start from", metavar="MODEL")
    pretrained: bool = option(False, "start from published weights (--weights and a saved model go before)")
    weights: str | None = option(None, "weights to start from: .safetensors or .pth", metavar="FILE")
    model_args: tuple[str, ...] = option((), "arguments of the network, like width=8", metavar="NAME=VALUE")
    pooling: str | None = option(
        None, "second-order pooling instead of the average; see methods pooling", metavar="NAME"
    )
    pooling_dim: int | None = option(None, "channels that enter the pooling (default: 256)", metavar="N", least=1)
    pooling_args: tuple[str, ...] = option((), "options of the pooling, like iterations=3", metavar="NAME=VALUE")
    last_stride: Literal[1] | None = option(None, "1: last stage at full resolution, as second-order papers do")
    head_lr_mult: float | None = option(
        None, "learning rate of pooling and classifier, times --lr (default: 1)", metavar="X", above=0
    )


@dataclass(frozen=True, kw_only=True)
class TrainedOptions(Computation):
    """Which trained network."""

    model: str = option(help="run folder, weights file, timm name, hf-hub:ID", metavar="MODEL", positional=True)
    weights: str | None = option(None, "weights for MODEL: .safetensors or .pth", metavar="FILE")


def check(arguments: ModelOptions) -> None:
    """Refuse names that do not exist and flags that contradict each other, before anything is read."""
    keyword_arguments(arguments.model_args)
    for flag in ("pooling_dim", "pooling_args", "last_stride", "head_lr_mult"):
        if getattr(arguments, flag) not in (None, ()) and arguments.pooling is None:
            shown = f"--{flag.replace('_', '-')}"
            raise InvalidArgument(f"{shown} belongs to a pooling", argument=shown, hint="add --pooling NAME")
    if arguments.pooling is not None:
        pooling_arguments(arguments.pooling, arguments.pooling_args)
    if is_saved(arguments.model) or arguments.weights is not None:
        # a preset or file that asks for published weights gives way to weights named in particular; two flags clash
        if environment.typed("--pretrained"):
            hint = "leave --pretrained out: the saved weights are taken"
            rule = "published weights belong to a name"
            raise InvalidArgument(rule, argument=f"--model {arguments.model}", hint=hint)
        return
    from convsmith.models.recipes import check_name

    check_name(arguments.model)


def pooling_arguments(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Read ``iterations=3 side=positions`` as options of the pooling ``name``; refuse what it does not take."""
    from convsmith import pooling

    known = pooling.pooling_options(name)
    reserved = {"dim": "--pooling-dim N"}
    values = method_settings(words, {name: known}, flag="--pooling-args", reserved=reserved)[name]
    # values outside their rules: the layer's own refusal, before images are read
    pooling.POOLINGS.entry(name).value(64, **values)
    return values


def is_saved(spec: str) -> bool:
    """Tell whether MODEL means something on disk, on the hub or importable, and not a name."""
    from convsmith.models import sources

    return not sources.is_name(spec)


def preprocessing_of(arguments: ModelOptions) -> Preprocessing | None:
    """Return how the weights to start from saw images; None for fresh ones."""
    from convsmith.data import Preprocessing
    from convsmith.models.storage import load_model

    if is_saved(arguments.model):
        return load_model(arguments.model, weights=arguments.weights).preprocessing
    if not arguments.pretrained and arguments.weights is None:
        return None
    import timm
    import torch

    with torch.device("meta"):
        return Preprocessing.from_model(timm.create_model(arguments.model, **keyword_arguments(arguments.model_args)))


def create(arguments: ModelOptions, about: DataDescription) -> tuple[nn.Module, ModelRecipe]:
    """Build the network for the images described, seeded, with its recipe."""
    import torch

    from convsmith.models.storage import ModelRecipe, build, load_model

    torch.manual_seed(arguments.seed)
    built = {"num_classes": len(about.classes), "in_chans": about.channels, **keyword_arguments(arguments.model_args)}
    pooling = _pooling(arguments)
    if not is_saved(arguments.model) and arguments.weights is None:
        recipe = ModelRecipe(arguments.model, built, pooling=pooling, description=about.to_json())
        return build(recipe, pretrained=arguments.pretrained), recipe
    loaded = load_model(arguments.model, weights=arguments.weights, **built)
    for note in loaded.notes:
        terminal.complain("note", note)
    recipe = replace(loaded.recipe, description=about.to_json(), preprocessing=None)
    if pooling is None:
        return loaded.model, recipe
    if recipe.pooling is not None or recipe.compression:
        argument = f"--pooling {arguments.pooling} on {arguments.model}"
        given = "a saved network that has been given another pooling or was compressed"
        raise InvalidArgument("a pooling is attached to a plain network only", argument=argument, given=given)
    from convsmith.pooling import attach

    return attach(loaded.model, num_classes=len(about.classes), **pooling), replace(recipe, pooling=pooling)


def load(spec: str, *, weights: str | None = None, device: str = "cpu") -> LoadedModel:
    """Load MODEL: anything `convsmith.models.load_model` knows, a bare name with its published weights."""
    from convsmith.models import recipes, sources, storage

    if sources.is_name(spec):
        recipes.check_name(spec)
    loaded = storage.load(spec, weights=weights, device=device)
    for note in loaded.notes:
        terminal.complain("note", note)
    return loaded


def trained_on(loaded: LoadedModel) -> DataDescription:
    """Return how the model sees images, and its classes (none where no names are known)."""
    from convsmith.data import DataDescription

    about = DataDescription(loaded.recipe.name, (), 1, (1, 1), (), ())
    if loaded.description is not None:
        about = DataDescription.from_json(loaded.description)
    return replace(about.seen_through(loaded.preprocessing), classes=loaded.classes or ())


def _pooling(arguments: ModelOptions) -> dict[str, Any] | None:
    if arguments.pooling is None:
        return None
    asked = {"dim": arguments.pooling_dim, "last_stride": arguments.last_stride, "head_lr_mult": arguments.head_lr_mult}
    found = {"pooling": arguments.pooling, **{name: value for name, value in asked.items() if value is not None}}
    if arguments.pooling_args:
        found |= pooling_arguments(arguments.pooling, arguments.pooling_args)
    return found


def check_takes(model: nn.Module, split: ImageSplit) -> None:
    """Run two images through the network and refuse what cannot work, before any run folder is made."""
    images = split.fetch(range(min(2, len(split)))).images
    model.eval()
    check_answers(model, images, split.classes, split.description.name)


def check_answers(model: nn.Module, images: Tensor, classes: Sequence[str], name: str) -> None:
    """Refuse a network, in eval mode, that does not give one number per class (if they are known) for these images."""
    import torch

    first = next(model.parameters(), images)
    try:
        with torch.no_grad():
            logits = model(images.to(first.device))
    except ConvsmithError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        sides = " x ".join(str(side) for side in images.shape[1:])
        rule, argument = "the network cannot take these images", f"{type(model).__name__} on images of {sides}"
        hint = "--size PIXELS and --channels 3 change the images, --model-args img_size=PIXELS some networks"
        given = " ".join(str(error).split())[:160]
        raise InvalidArgument(rule, argument=argument, given=given, hint=hint) from None
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 or (classes and shape != (len(images), len(classes))):
        given = f"output of shape {shape}" if shape else type(logits).__name__
        argument = f"{len(classes) or 'the'} classes of {name}"
        raise InvalidArgument("the network must give one number per class", argument=argument, given=given)
