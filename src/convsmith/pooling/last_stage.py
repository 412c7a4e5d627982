"""The last stage at stride 1, as the second-order papers do: a 14 x 14 map instead of 7 x 7 at 224 pixels.

More positions are what a covariance is estimated from. Which layer to change depends on the family, so families are
listed by name; for any other the answer is an error and not a guess.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from convsmith.errors import InvalidArgument


def _unstride(stage: nn.Module) -> int:
    """Set every strided convolution of a stage to stride 1 and take strided pools out; return how many changed."""
    changed = 0
    for parent in list(stage.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and max(child.stride) > 1:
                child.stride = (1, 1)
                changed += 1
            elif isinstance(child, (nn.AvgPool2d, nn.MaxPool2d)) and child.stride not in (1, (1, 1)):
                setattr(parent, name, nn.Identity())
                changed += 1
    return changed


def _vgg(model: Any) -> int:
    index = max((i for i, m in enumerate(model.features) if isinstance(m, nn.MaxPool2d)), default=None)
    if index is None:
        return 0
    model.features[index] = nn.Identity()
    return 1


def _efficientnet(model: Any) -> int:
    """Un-stride the last stage that has a stride; later ones have none."""
    stages = model.blocks if hasattr(model, "blocks") else model.features
    return next(filter(None, map(_unstride, reversed(list(stages)))), 0)


def _cifar(model: Any) -> int:
    for module in model.layer3.modules():
        # the parameter-free shortcut subsamples by its own ``stride``
        if isinstance(getattr(module, "stride", None), int):
            module.stride = 1
    return _unstride(model.layer3)


#: class name to surgery; timm and torchvision share the names
FAMILIES: dict[str, Callable[[Any], int]] = {
    "ResNet": lambda model: _unstride(model.layer4),
    "VGG": _vgg,
    "EfficientNet": _efficientnet,
    "MobileNetV2": _efficientnet,
    "MobileNetV3": _efficientnet,
    "DenseNet": lambda model: _unstride(model.features.transition3),
    "RegNet": lambda model: _unstride(model.s4 if hasattr(model, "s4") else model.trunk_output[-1]),
    "CifarResNet": _cifar,
}


def set_last_stride(model: nn.Module, stride: int) -> None:
    """Change the last stage of a known family to ``stride`` 1, in place; weights stay valid, the map doubles.

    Raises `InvalidArgument` for another stride, an unknown family, or a model whose last stage has no stride.
    """
    if stride != 1:
        raise InvalidArgument("the last stage can be set to stride 1", argument="last_stride", given=stride)
    name = type(model).__name__
    surgery = FAMILIES.get(name)
    if surgery is None:
        rule = "where the last stage of this family gets its stride is not known"
        hint = f"leave last_stride=None, or use one of the families {', '.join(FAMILIES)}"
        raise InvalidArgument(rule, argument=f"last_stride=1 for {name}", hint=hint)
    try:
        changed = surgery(model)
    except (AttributeError, IndexError) as error:
        rule = f"this {name} is not built as expected"
        raise InvalidArgument(rule, argument="last_stride=1", given=str(error), hint="last_stride=None") from error
    if not changed:
        rule = "the last stage has no stride to remove"
        raise InvalidArgument(rule, argument=f"last_stride=1 for {name}", hint="last_stride=None")
