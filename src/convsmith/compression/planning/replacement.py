"""Put another module in a layer's place."""

from __future__ import annotations

from torch import nn


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` wherever the module called ``name`` sits (a shared module sits in several places), in place.

    The new module takes over the training mode of the old one.
    """
    old = model.get_submodule(name)
    new.train(old.training)
    put(model, old, new)


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in every place of ``old``, in place; modes stay.

    torch's encoder layer reads the weights of its layers past their forward in evaluation mode; around a new layer it
    no longer does (its own switch for activations it does not know).
    """
    for path, child in list(model.named_modules(remove_duplicate=False)):
        if child is old:
            parent, _, key = path.rpartition(".")
            setattr(model.get_submodule(parent), key, new)
            while parent:
                around = model.get_submodule(parent)
                if isinstance(around, nn.TransformerEncoderLayer):
                    around.activation_relu_or_gelu = 0
                parent = parent.rpartition(".")[0]
