"""Where gates sit: the outputs of convolutions, of residual blocks, of activations, or of modules you name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from convsmith.arguments import one_of, spelled
from convsmith.errors import InvalidArgument, close_matches, refusing
from convsmith.inspection.layers import Call, LayerInventory, is_activation
from convsmith.inspection.trace import trace_layers

#: a site rule of your own: ``(module name, module) -> bool``
SiteRule = Callable[[str, nn.Module], bool]
KINDS = ("auto", "conv", "block", "activation")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALISATIONS = ("Norm", "norm", "Affine")
_RECTIFIERS = ("ReLU", "ReLU6")


@dataclass(frozen=True)
class Site:
    """One gated place.

    ``name`` is the module's qualified name, with ``#call`` added where the module runs more than once; ``width`` is
    the number of channels, ``axis`` the dimension they lie on, ``rank`` the number of dimensions of the output.
    ``rectified``: a channel without a positive value passes nothing on (a ReLU follows, or the output is one).
    """

    name: str
    module: str
    call: int
    width: int
    axis: int
    rank: int
    rectified: bool


@dataclass(frozen=True)
class SitePlan:
    """Sites in execution order, the kind that was chosen, and the names of the calls that precede the first gate."""

    sites: tuple[Site, ...]
    kind: str
    prefix: tuple[str, ...]

    @property
    def total(self) -> int:
        """Number of gates of one image."""
        return sum(site.width for site in self.sites)

    @property
    def widths(self) -> list[int]:
        """Number of gates by site."""
        return [site.width for site in self.sites]


def plan_sites(
    model: nn.Module, images: Tensor, sites: str | SiteRule = "auto", layers: Sequence[str] | None = None
) -> SitePlan:
    """Choose the gated places of ``model`` by watching one forward pass on two rows of ``images`` [B, C, H, W].

    ``sites``: ``"conv"`` every convolution's output, before what follows; ``"block"`` the output of every module that
    adds a shortcut (and of its sister modules of the same class); ``"activation"`` the output of every activation
    module; ``"auto"`` blocks where the network has them, else convolutions, else (where a normalisation sits between
    convolution and activation, so that a closed convolution still passes a constant) activations; or a rule
    ``(name, module) -> bool``. ``layers`` keeps the sites with these names (``*`` is a wildcard); with ``"auto"`` it
    may name any module. Raises `InvalidArgument` for no site, an unknown layer, an output that is no tensor of rows
    with a channel axis.
    """
    # two images, so that a first dimension of 2 means "batch"
    two = images[:2] if len(images) > 1 else torch.cat([images, images])
    errors = (RuntimeError, AssertionError, ValueError, TypeError, IndexError)
    with refusing("the network must run on the images", *errors, argument=f"images: {spelled(images)}"):
        seen = trace_layers(model, two)
    if isinstance(sites, str):
        one_of("sites", sites, KINDS)
        chosen, kind = _named(sites, seen, layers)
    else:
        chosen, kind = [call for call in seen.calls if call.name and sites(call.name, call.module)], "rule"
    chosen = _filter(chosen, seen, layers)
    if not chosen:
        rule = "the network has no such site"
        hint = "choose another of " + ", ".join(KINDS) + ", or give a rule (name, module) -> bool"
        raise InvalidArgument(rule, argument=f"sites={sites!r}", given=type(model).__name__, hint=hint)
    return SitePlan(tuple(_site(call, seen) for call in chosen), kind, _prefix(chosen, seen))


def _named(sites: str, seen: LayerInventory, layers: Sequence[str] | None) -> tuple[list[Call], str]:
    if sites == "auto" and layers is not None and not any("*" in layer for layer in layers):
        wanted = {layer.split("#")[0] for layer in layers}
        if wanted <= {call.name for call in seen.calls}:
            return [call for call in seen.calls if call.name in wanted], "named"
    # what adds a shortcut in its own forward, with its sisters (same class), the outermost of each nest only
    kinds = {type(call.module) for call in seen.calls if call.adds and call.parents}
    adding = [call for call in seen.calls if type(call.module) in kinds]
    blocks = [call for call in adding if not any(type(parent.module) in kinds for parent in call.parents)]
    convolutions = [call for call in seen.calls if isinstance(call.module, _CONVOLUTIONS)]
    activations = [call for call in seen.calls if is_activation(call.module)]
    if sites == "auto":
        if len(blocks) > 1:
            return blocks, "block"
        normed = any(any(word in f for word in _NORMALISATIONS) for call in convolutions for f in call.followers)
        if normed and activations and not seen.functional:
            return activations, "activation"
        return convolutions, "conv"
    if sites == "block":
        if not blocks:
            rule = "no module of this network adds a shortcut, so it has no residual blocks"
            raise InvalidArgument(rule, argument='sites="block"', hint='use sites="conv" or sites="activation"')
        return blocks, sites
    if sites == "activation" and seen.functional:
        raise InvalidArgument(
            "an activation is called as a function, so there is no module to gate",
            argument='sites="activation"',
            given="functional activation inside " + ", ".join(seen.functional[:5]),
            hint='use sites="conv" (for a ReLU after a convolution it is the same gate), or make it an nn.Module',
        )
    return (convolutions if sites == "conv" else activations), sites


def _filter(chosen: list[Call], seen: LayerInventory, layers: Sequence[str] | None) -> list[Call]:
    if layers is None:
        return chosen
    if not layers:
        raise InvalidArgument("layers names no layer", argument="layers", given=repr(layers))
    names = {call: (_name(call, seen), call.name) for call in chosen}
    found: set[Call] = set()
    for layer in layers:
        fitting = {call for call in chosen if any(fnmatchcase(name, layer) for name in names[call])}
        if not fitting:
            hint = close_matches(layer, {name for own in names.values() for name in own})
            raise InvalidArgument("no gated layer has this name", argument="layers", given=repr(layer), hint=hint)
        found |= fitting
    return [call for call in chosen if call in found]


def _name(call: Call, seen: LayerInventory) -> str:
    return f"{call.name}#{call.index}" if seen.count(call.module) > 1 else call.name


def _site(call: Call, seen: LayerInventory) -> Site:
    name = _name(call, seen)
    asked = f"a gate on {name} ({type(call.module).__name__})"
    if call.shape is None:
        rule = "a gate multiplies one tensor; this module returns something else (a tuple, a dictionary)"
        raise InvalidArgument(rule, argument=asked, hint="choose a module whose output is a tensor")
    if len(call.shape) < 2 or call.shape[0] != seen.rows:
        rule = "a gate belongs to one image, and this module's first dimension is not the batch"
        given, hint = f"shape {call.shape} for {seen.rows} images", "choose the module around it that returns [B, ...]"
        raise InvalidArgument(rule, argument=asked, given=given, hint=hint)
    rank = len(call.shape)
    axis = rank - 1 if _channels_last(call) else 1
    read = bool(call.followers) and all(follower in _RECTIFIERS for follower in call.followers)
    rectified = read or isinstance(call.module, nn.ReLU | nn.ReLU6)
    return Site(name, call.name, call.index, call.shape[axis], axis, rank, rectified)


def _channels_last(call: Call) -> bool:
    """Tell whether channels are the last axis: tokens [B, N, C], or maps [B, H, W, C] that a linear layer made."""
    shape = call.shape or ()
    if isinstance(call.module, _CONVOLUTIONS) or len(shape) < 3:
        return False
    if isinstance(call.module, nn.Linear):
        return True
    inner = list(call.module.modules())
    linear = any(isinstance(m, nn.Linear) for m in inner)
    convolution = any(isinstance(m, _CONVOLUTIONS) for m in inner)
    if not linear and not convolution and call.source is not None and call.source.shape == shape:
        return _channels_last(call.source)
    if len(shape) == 3:
        return linear or not any(isinstance(m, nn.Conv1d) for m in inner)
    return linear and not convolution and shape[1] == shape[2] != shape[3]


def _prefix(chosen: list[Call], seen: LayerInventory) -> tuple[str, ...]:
    """Names of the outermost modules that are complete, once and for all, when the first gate is applied."""
    first = min(call.order for call in chosen)
    ready = {call for call in seen.calls if call.order <= first and seen.count(call.module) == 1}
    outer = [call for call in seen.calls if call in ready and ready.isdisjoint(call.parents)]
    batch = (seen.rows,)
    return tuple(c.name for c in outer if c.shape and c.input_shape and c.shape[:1] == c.input_shape[:1] == batch)
