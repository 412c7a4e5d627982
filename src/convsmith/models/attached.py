"""Any backbone of timm's with any pooling of ours as one registered name, so that timm itself saves and loads it.

`convsmith.pooling.attach` makes such networks from a network at hand; this is the same by names and plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm

from convsmith.models.published import configuration, family
from convsmith.models.recipes import check_arguments, check_name
from convsmith.pooling import PooledClassifier, attach


def attached_net(
    backbone: str = "cs_resnet20",
    backbone_args: Mapping[str, Any] | None = None,
    pooling: Mapping[str, Any] | None = None,
    num_classes: int = 10,
    in_chans: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    global_pool: str | None = None,
) -> PooledClassifier:
    """Build ``backbone`` and attach a pooling to it.

    Args:
        backbone: a name of timm's registry.
        backbone_args: the network's own arguments; none that open files.
        pooling: arguments of `convsmith.pooling.attach`; None: iSQRT-COV of 32 channels.
        num_classes: classes.
        in_chans: channels of the images; None: the backbone's.
        img_size: side of the images, for backbones that are built for one.
        global_pool: ``""`` with 0 classes gives the feature map; another pooling is an error.
    """
    check_name(backbone)
    arguments = dict(backbone_args or {})
    if in_chans is not None:
        arguments["in_chans"] = in_chans
    if img_size is not None:
        arguments["img_size"] = img_size
    check_arguments(backbone, arguments)
    attached = attach(
        timm.create_model(backbone, **arguments),
        **{**({"dim": 32} if pooling is None else pooling), "num_classes": num_classes},
    )
    if global_pool is not None:
        attached.reset_classifier(num_classes, global_pool)
    return attached


_add = family(
    __name__,
    attached_net,
    {**configuration(32, 8, 10), "first_conv": "backbone.conv1", "classifier": "classifier"},
    feature_cfg={"feature_cls": "getter", "out_indices": (0, 1, 2, 3)},
)
_add("attached_pooling", "Build ``backbone`` with an attached ``pooling``; CIFAR ResNet-20 with iSQRT-COV by default.")
