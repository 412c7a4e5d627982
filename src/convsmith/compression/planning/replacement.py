"""Put another module in a layer's place."""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` wherever the module called ``name`` sits (a shared module sits in several places), in place.

    The new module takes over the training mode of the old one.
    """
    old = model.get_submodule(name)
    new.train(old.training)
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
