"""What ``pretrained=True`` may mean for a network of ours: nothing is published, a file or the hub may hold weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import PretrainedCfg

from convsmith.errors import InvalidArgument

_SOURCES = ("file", "url", "hf_hub_id", "state_dict")


def check_published(
    name: str, pretrained: bool, settings: Mapping[str, Any], *, hint: str = "train it, pretrained=False"
) -> None:
    """Refuse ``pretrained=True`` unless the configuration that came with the call says where weights are.

    timm gives it for ``local-dir:`` and ``hf-hub:`` names and for ``pretrained_cfg_overlay={"file": ...}``.
    """
    for given in (settings.get("pretrained_cfg"), settings.get("pretrained_cfg_overlay")):
        values = vars(given) if isinstance(given, PretrainedCfg) else given
        if isinstance(values, Mapping) and any(values.get(source) for source in _SOURCES):
            return
    if pretrained:
        raise InvalidArgument(
            "this network has no published weights", argument="pretrained=True", given=name, hint=hint
        )
