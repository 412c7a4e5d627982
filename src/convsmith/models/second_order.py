"""Published second-order networks: ResNet and VGG with iSQRT-COV pooling before the classifier.

Paper: Li et al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root
Normalization" (CVPR 2018). The ResNets keep stride 1 in their last stage, reduce to 256 channels and classify the
32,896 entries of the root by one layer; the VGG drops its last max-pooling and keeps two hidden layers of 4,096.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn

from convsmith.errors import InvalidArgument, differing_tensors
from convsmith.models.published import configuration, family
from convsmith.pooling import PooledClassifier, attach


def second_order_net(
    backbone: str,
    hidden: tuple[int, ...] = (),
    num_classes: int = 1000,
    dim: int | None = 256,
    drop_rate: float = 0.0,
    global_pool: str | None = None,
    iterations: int = 5,
    pretrained_backbone: bool = False,
    **backbone_args: Any,
) -> PooledClassifier:
    """Build ``backbone`` with its last stage at stride 1 and iSQRT-COV pooling.

    Args:
        backbone: timm name of a ResNet or VGG.
        hidden: sizes of hidden layers in front of the classifier.
        num_classes: classes.
        dim: channels after the 1 x 1 reduction.
        drop_rate: dropout of the head.
        global_pool: ``""`` with 0 classes gives the feature map; another pooling is an error.
        iterations: Newton-Schulz steps.
        pretrained_backbone: start from timm's published features.
        **backbone_args: of the backbone (``in_chans``, ``act_layer``, ...).
    """
    if global_pool not in (None, "") or (global_pool == "" and num_classes):
        rule = "the pooling of a second-order network is the covariance's root"
        hint = f"timm.create_model({backbone!r}, global_pool=...), or convsmith.pooling.attach(...)"
        raise InvalidArgument(rule, argument="global_pool", given=repr(global_pool), hint=hint)
    attached = attach(
        timm.create_model(backbone, pretrained=pretrained_backbone, num_classes=0, **backbone_args),
        "isqrt-cov",
        dim=dim,
        num_classes=num_classes,
        last_stride=1,
        hidden=hidden,
        drop_rate=drop_rate,
        iterations=iterations,
    )
    attached._model_args = {}  # timm records the arguments of this name instead
    if global_pool == "":
        attached.reset_classifier(0, "")
    return attached


_CFG = {**configuration(224, 32, 1000), "pool_size": (14, 14)}
_HINT = "pretrained_backbone=True starts from timm's features; load_fast_mpncov reads the authors' files"
_resnet = family(
    __name__,
    second_order_net,
    {**_CFG, "first_conv": "backbone.conv1", "classifier": "classifier"},
    feature_cfg={"feature_cls": "getter", "out_indices": (1, 2, 3, 4)},
    hint=_HINT,
)
for _depth, _count in ((18, 44_205_096), (34, 54_313_256), (50, 56_929_832), (101, 75_921_960)):
    _about = f"ResNet-{_depth} with iSQRT-COV pooling: {_count:,} parameters for 1000 classes."
    _resnet(f"resnet{_depth}_isqrt", _about, backbone=f"resnet{_depth}")
_vgg = family(
    __name__,
    second_order_net,
    {**_CFG, "first_conv": "backbone.features.0", "classifier": "classifier.6"},
    feature_cfg={"feature_cls": "getter", "out_indices": (1, 2, 3, 4, 5)},
    hint=_HINT,
)
_vgg(
    "vgg16_bn_isqrt",
    "VGG-16 with batch normalisation and iSQRT-COV pooling: 170,479,144 parameters for 1000 classes.",
    backbone="vgg16_bn",
    hidden=(4096, 4096),
    drop_rate=0.5,
)

_RULES = (
    (r"^layer_reduce\.", "pooling.reduce.0."),
    (r"^layer_reduce_bn\.", "pooling.reduce.1."),
    (r"^representation\.conv_dr_block\.(\d+)\.", r"pooling.reduce.\1."),
    (r"^(?:fc|classifier)\.", "classifier."),
)  #: a ResNet cut into a Sequential numbers its children
_RESNET_CHILDREN = (
    *("conv1", "bn1", None, None, "layer1", "layer2", "layer3", "layer4"),
    *("layer_reduce", "layer_reduce_bn"),
)


def convert_fast_mpncov(weights: Mapping[str, Tensor], *, resnet: bool) -> dict[str, Tensor]:
    """Return weights in the naming of fast-MPN-COV under this package's names.

    Knows both ResNet layouts (``layer_reduce.weight`` beside ``layer1...``, and ``features.N`` with
    ``representation.conv_dr_block``) and the VGG layout; strips ``module.`` of data-parallel training.
    """
    out = {}
    for original, tensor in weights.items():
        key = re.sub(r"(^|\.)module\.", r"\1", original)
        numbered = re.match(r"^features\.(\d+)\.(.*)$", key)
        if resnet and numbered:
            child = _RESNET_CHILDREN[int(numbered[1])] if int(numbered[1]) < len(_RESNET_CHILDREN) else None
            if child is None:
                raise InvalidArgument("a numbered layer of a ResNet that has no weights", argument=original)
            key = f"{child}.{numbered[2]}"
        for pattern, replacement in _RULES:
            if re.match(pattern, key):
                key = re.sub(pattern, replacement, key)
                break
        else:
            key = f"backbone.{key}"
        out[key] = tensor
    return out


def load_fast_mpncov(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights in the naming of fast-MPN-COV into one of this file's networks, strictly.

    ``weights`` is a state dict, or a checkpoint that holds one as ``"state_dict"``; read the file with
    ``torch.load(path, weights_only=True)``. Raises `InvalidArgument` that names the first tensors that do not fit.
    """
    if not isinstance(model, PooledClassifier):
        rule = "one of the *_isqrt networks is needed"
        raise InvalidArgument(rule, argument="load_fast_mpncov", given=type(model).__name__)
    inner = weights.get("state_dict", weights)
    assert isinstance(inner, Mapping)
    converted = convert_fast_mpncov(inner, resnet=hasattr(model.backbone, "layer4"))
    expected = model.state_dict()
    for key, value in expected.items():
        # files of torch before 1.0 do not count batches
        if key.endswith("num_batches_tracked"):
            converted.setdefault(key, value)
    differing = differing_tensors(expected, converted)
    if differing:
        raise InvalidArgument("these weights belong to another network", argument="load_fast_mpncov", given=differing)
    model.load_state_dict(converted)
