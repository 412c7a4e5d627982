"""Networks of ours under timm's names: a table of names, their configuration, and what ``pretrained=True`` may mean."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from convsmith.errors import InvalidArgument

_SOURCES = ("file", "url", "hf_hub_id", "state_dict")


def family(
    module: str,
    builder: Callable[..., nn.Module],
    config: Mapping[str, Any],
    *,
    stages: int | None = None,
    feature_cfg: dict[str, Any] | None = None,
    hint: str = "train it, or give it weights of your own",
) -> Callable[..., None]:
    """Return ``add(name, about, **own)``: it registers one network of ``module`` with timm.

    ``about`` is a line about the network and ``own`` are its arguments; `features_only` and the like then work as for
    every network of timm's.

    Args:
        module: ``__name__`` of the file that the functions belong to.
        builder: makes the network from the arguments of a name and those of the caller.
        config: timm's configuration; there are no published weights.
        stages: of the network, whose maps ``features_only`` gives beside the stem's.
        feature_cfg: how ``features_only`` is made otherwise.
        hint: how weights are come by.
    """
    home: Any = sys.modules[module]
    if stages is not None:
        feature_cfg = {"out_indices": tuple(range(stages + 1)), "flatten_sequential": False}

    def add(name: str, about: str, **own: Any) -> None:
        def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
            check_published(name, pretrained, kwargs, hint=hint)
            features = None if feature_cfg is None else dict(feature_cfg)  # timm takes entries out
            return build_model_with_cfg(builder, name, pretrained, feature_cfg=features, **{**own, **kwargs})

        create.__name__ = create.__qualname__ = name
        create.__doc__, create.__module__ = about, module
        cfgs = generate_default_cfgs({f"{name}.untrained": dict(config)})
        home.default_cfgs = {**getattr(home, "default_cfgs", {}), **cfgs}
        setattr(home, name, register_model(create))

    return add


def configuration(size: int, least: int, classes: int) -> dict[str, Any]:
    """Return timm's default configuration of a network of ours, which never has published weights."""
    small = size <= 64
    return {
        "url": "",
        "num_classes": classes,
        "input_size": (3, size, size),
        "min_input_size": (3, least, least),
        "pool_size": (math.ceil(size / 4), math.ceil(size / 4)) if small else (7, 7),
        "crop_pct": 1.0 if small else 0.875,
        "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465) if small else (0.485, 0.456, 0.406),
        "std": (0.2470, 0.2435, 0.2616) if small else (0.229, 0.224, 0.225),
        "fixed_input_size": False,
        "first_conv": "stem.0",
        "classifier": "fc",
        "license": "apache-2.0",
    }


def check_published(name: str, pretrained: bool, settings: Mapping[str, Any], *, hint: str) -> None:
    """Refuse ``pretrained=True`` unless the configuration that came with the call says where weights are.

    timm gives it for ``local-dir:`` and ``hf-hub:`` names and for ``pretrained_cfg_overlay={"file": ...}``.
    """
    for given in (settings.get("pretrained_cfg"), settings.get("pretrained_cfg_overlay")):
        values = vars(given) if isinstance(given, PretrainedCfg) else given
        if isinstance(values, Mapping) and any(values.get(source) for source in _SOURCES):
            return
    if pretrained:
        rule = "this network has no published weights"
        raise InvalidArgument(rule, argument=name, hint=hint)
