"""Put another module in a layer's place, and make one like it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.compression.planning.moments import Moments
from convsmith.inspection.layers import KINDS, Weighted

_SIZES = {
    "linear": ("in_features", "out_features"),
    "conv": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
}
_SIZES["transposed"] = (*_SIZES["conv"], "output_padding")


class StandIn(nn.Module, ABC):
    """Several layers in the place of one; networks whose forward asks that one for its sizes get an answer.

    ``weight`` tells shape, dtype and device of the dense weight. Its values are NaN: who would use them, finds out.
    """

    __jit_unused_properties__ = ("weight",)
    if TYPE_CHECKING:  # an annotation that scripting cannot read
        dense_shape: tuple[int, ...]

    @property
    def weight(self) -> Tensor:
        own = next(self.parameters())
        return torch.full((), torch.nan, dtype=own.dtype, device=own.device).expand(self.dense_shape)

    @abstractmethod
    def refit(self, weight: Tensor, moments: Moments, bias: Tensor | None) -> None:
        """Come as near as possible to ``weight`` [g, o, d] on inputs of these moments; ``bias`` [g o]."""

    @abstractmethod
    def shift(self, lost: Tensor) -> None:
        """Add ``lost`` [g o] to the outputs, by the bias."""


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` wherever the module called ``name`` sits (a shared module sits in several places), in place.

    The new module takes over the training mode of the old one, a `StandIn` its sizes too.
    """
    old = model.get_submodule(name)
    new.train(old.training)
    if isinstance(new, StandIn):
        for size in _kind_and_sizes(old)[1]:
            setattr(new, size, getattr(old, size))
        new.dense_shape = tuple(old.weight.shape)  # type: ignore[arg-type]
    put(model, old, new)


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in every place of ``old``, in place; modes stay."""
    for path, child in list(model.named_modules(remove_duplicate=False)):
        if child is old:
            parent, _, key = path.rpartition(".")
            setattr(model.get_submodule(parent), key, new)
            while parent:
                around = model.get_submodule(parent)
                if isinstance(around, nn.TransformerEncoderLayer):
                    _choose_path(around)
                parent = parent.rpartition(".")[0]


def _kind_and_sizes(layer: nn.Module) -> tuple[type[nn.Module], tuple[str, ...]]:
    return next((cls, _SIZES[word]) for cls, word in KINDS.items() if isinstance(layer, cls))


def fresh_like(layer: Weighted, kind: type[nn.Module] | None = None, **changes: Any) -> Any:
    """Return a fresh layer with the sizes, bias, device, dtype and frozen parts of ``layer`` but for ``changes``.

    ``kind``: its class, one with the same arguments; by default the plain Conv2d, ConvTranspose2d or Linear it is.
    """
    plain, names = _kind_and_sizes(layer)
    names = _SIZES["conv"] if kind is nn.Conv2d else names
    given = {name: getattr(layer, name) for name in names}
    like = {"bias": layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    made = (kind or plain)(**{**given, **like, **changes})
    made.weight.requires_grad_(layer.weight.requires_grad)
    if made.bias is not None:
        made.bias.requires_grad_((layer.weight if layer.bias is None else layer.bias).requires_grad)
    return made


def _choose_path(layer: nn.TransformerEncoderLayer) -> None:
    """Let a transformer layer call its layers where one of them is not plain.

    In evaluation mode torch's fast path reads ``linear1.weight`` and ``linear2.weight`` itself: a layer put in their
    place would be passed by (or lack the attribute). The activation's number is what switches that path.
    """
    activation = layer.activation
    number = 1 if activation is F.relu or isinstance(activation, nn.ReLU) else 0
    number = 2 if activation is F.gelu or isinstance(activation, nn.GELU) else number
    own = {"Linear", "NonDynamicallyQuantizableLinear"}  # what torch puts there
    layers = (layer.linear1, layer.linear2, layer.self_attn.out_proj)
    layer.activation_relu_or_gelu = number if all(type(x).__name__ in own for x in layers) else 0
