"""A network that is ready to predict: with its transform, its class names and the recipe that builds it again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from convsmith.arguments import checked, integer, spelled, wide
from convsmith.data.pictures import FAILURES
from convsmith.data.preprocessing import Preprocessing
from convsmith.errors import InvalidArgument, refusing
from convsmith.models.recipes import ModelRecipe

ImageLike = str | PathLike[str] | Image.Image | Tensor


class Prediction(NamedTuple):
    """The first class of one image, its softmax probability, and the second class (None where there is one)."""

    name: str
    probability: float
    runner_up: str | None


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode and what belongs to it.

    ``classes`` is None where no names are known; ``notes`` say what loading had to do (a new head, names matched by
    order).
    """

    model: nn.Module
    recipe: ModelRecipe
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> Mapping[str, Any] | None:
        """The description of the data it was trained on, None if unknown."""
        return self.recipe.description

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The evaluation path of this network: PIL image -> normalised float tensor [C, H, W]."""
        return self.preprocessing.transform()

    def probabilities(self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 32) -> Tensor:
        """Return softmax probabilities [N, K] of images: paths, PIL images, or tensors that are inputs already.

        Raises:
            InvalidArgument: a path that is no readable image; something that is no image; nothing at all.
        """
        integer("batch_size", batch_size, least=1)
        inputs = _inputs(images)
        if not inputs:
            raise InvalidArgument("at least one image is needed", argument="images", given="none")
        like = next(self.model.parameters(), torch.zeros(()))
        transform, found = self.transform, []
        with torch.no_grad():
            for start in range(0, len(inputs), batch_size):
                batch = [_tensor(one, transform) for one in inputs[start : start + batch_size]]
                with refusing("inputs have one shape", RuntimeError, argument="images"):
                    x = torch.stack(batch)
                found.append(wide(self.model(x.to(like.device, like.dtype))).softmax(1).cpu())
        return torch.cat(found)

    def predict(self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 32) -> list[Prediction]:
        """Return name, probability and runner-up of each image, in order; see `probabilities`."""
        values, order = self.probabilities(images, batch_size=batch_size).sort(dim=1, descending=True, stable=True)
        return [
            Prediction(self.name_of(int(o[0])), float(v[0]), self.name_of(int(o[1])) if len(o) > 1 else None)
            for v, o in zip(values, order, strict=True)
        ]

    @checked
    def save_pretrained(self, folder: str | Path) -> Path:
        """Write weights and ``config.json`` as timm's ``save_for_hf`` does, for ``local-dir:`` and `from_pretrained`.

        Raises:
            InvalidArgument: a network that no name of timm's registry builds, a compressed one for instance.
        """
        from timm.models import save_for_hf

        network, config = self._for_timm()
        save_for_hf(network, str(folder), model_config=config, safe_serialization=True)
        return Path(folder)

    @classmethod
    @checked
    def from_pretrained(cls, name: str | Path) -> LoadedModel:
        """Load a folder that `save_pretrained` wrote, or ``owner/name`` of the hub; see `convsmith.load`."""
        import convsmith

        found: LoadedModel = convsmith.load(name if Path(name).expanduser().exists() else f"hf-hub:{name}")
        return found

    def push_to_hub(self, repo_id: str, **settings: Any) -> None:
        """Upload what `save_pretrained` writes; ``settings`` are those of timm's ``push_to_hf_hub``."""
        from timm.models import push_to_hf_hub

        network, config = self._for_timm()
        push_to_hf_hub(network, repo_id, model_config=config, safe_serialization=True, **settings)

    def _for_timm(self) -> tuple[nn.Module, dict[str, Any]]:
        """Return the network with this preprocessing in its configuration, and the class names for timm's file."""
        published = getattr(self.model, "pretrained_cfg", None) or {}
        if self.recipe.compression or not published.get("architecture"):
            rule, hint = "timm's registry does not build this network", "save_model keeps every recipe"
            raise InvalidArgument(rule, argument="model", given=type(self.model).__name__, hint=hint)
        network: Any = copy.copy(self.model)  # shares the weights; the configuration alone is another
        network.pretrained_cfg = {**published, **asdict(self.preprocessing), "num_classes": self.model.num_classes}
        return network, {} if self.classes is None else {"label_names": list(self.classes)}

    def name_of(self, index: int) -> str:
        """Return the name of a class, its number where no names are known."""
        return str(index) if self.classes is None else self.classes[index]


def _inputs(images: ImageLike | Iterable[ImageLike]) -> Sequence[ImageLike]:
    if isinstance(images, Tensor):
        return list(images) if images.dim() == 4 else [images]
    if isinstance(images, str | PathLike | Image.Image):
        return [images]
    if not isinstance(images, Iterable):
        raise InvalidArgument("paths, PIL images or tensors are needed", argument="images", given=spelled(images))
    return list(images)


def _tensor(image: object, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    if isinstance(image, Image.Image):
        return transform(image)
    if isinstance(image, Tensor) and image.dim() == 3 and image.is_floating_point():
        if not bool(image.isfinite().all()):
            raise InvalidArgument("images must be finite", argument="images", given="NaN or infinite pixels")
        return image
    if not isinstance(image, str | PathLike):
        hint = "PIL.Image.fromarray(...)" if hasattr(image, "__array__") else None
        hint = "float [C, H, W], normalised as .transform does" if isinstance(image, Tensor) else hint
        raise InvalidArgument("this is no image", argument="images", given=spelled(image), hint=hint)
    path = Path(image)
    if not path.is_file():
        raise InvalidArgument("there is no such image file", argument="images", given=str(path))
    with refusing(f"the image {path} cannot be read", *FAILURES, argument="images"), Image.open(path) as opened:
        return transform(opened)


def classes_of(
    model: nn.Module, recipe: ModelRecipe, labels: Sequence[str] | None, count: int | None
) -> tuple[str, ...] | None:
    """Return class names: of the training data; of the configuration beside the weights; ImageNet's; else None.

    ImageNet's are timm's descriptions, for 1000 outputs of a network whose own configuration has 1000 classes.
    """
    about = recipe.description
    for names in (None if about is None else about.get("classes"), labels):
        if names and len(names) == count:
            return tuple(str(name) for name in names)
    published = getattr(model, "pretrained_cfg", None) or {}
    imagenet = published.get("num_classes") == 1000 or type(model).__module__.startswith("torchvision.models")
    if count == 1000 and about is None and imagenet:
        from timm.data import ImageNetInfo

        return tuple(ImageNetInfo("imagenet-1k").label_descriptions())
    return None
