"""Parts of a network that do not train: by the names of submodules, or by the number of stages from the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from convsmith.arguments import checked
from convsmith.errors import InvalidArgument, close_matches
from convsmith.inspection.modes import unwrap


@checked
def freeze(model: Any, parts: Sequence[str | int]) -> list[nn.Module]:
    """Switch the gradients of ``parts`` off in place; return the modules that must stay in eval mode.

    Args:
        model: a network of timm, for numbers; any module, for names.
        parts: names of submodules ("layer1", "blocks.0"), or one number: so many stages from the input, as timm's
            ``group_matcher(coarse=True)`` counts them (1 is the stem).

    Raises:
        InvalidArgument: a name that is no submodule, a number with names beside it, a network without stages.

    Examples:
        >>> fixed = freeze(model, ["conv1"])
    """
    model, chosen = unwrap(model), set[str]()
    named = dict(model.named_modules())
    numbers = [int(part) for part in parts if str(part).isdigit() and str(part) not in named]
    if numbers:
        if len(parts) > 1 or not hasattr(model, "group_matcher"):
            rule = "one number of stages of a timm network, or names of submodules"
            raise InvalidArgument(rule, argument="freeze", given=", ".join(map(str, parts)))
        from timm.models import group_parameters

        layers = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
        chosen = {name for name, layer in layers.items() if layer < numbers[0]}
    for part in () if numbers else map(str, parts):
        if part not in named:
            rule = "the network has no submodule of this name"
            raise InvalidArgument(rule, argument="freeze", given=part, hint=close_matches(part, filter(None, named)))
        chosen |= {name for name, _ in model.named_parameters() if name.startswith(f"{part}.") or name == part}
    for name, parameter in model.named_parameters():
        if name in chosen:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise InvalidArgument("something must be left to train", argument="freeze", given=", ".join(map(str, parts)))
    return [m for m in model.modules() if (own := list(m.parameters())) and not any(p.requires_grad for p in own)]


@checked
def norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch normalisations, to be kept in eval mode: their statistics then stay what they are.

    Examples:
        >>> layers = norms(model)
    """
    return [m for m in model.modules() if hasattr(m, "running_mean")]
