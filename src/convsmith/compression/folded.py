"""The layers of a folded network: convolutions on packed weights with their activation, chains, IGCV3's block."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.compression.operators import onednn
from convsmith.compression.operators.interleaved import LinearChain


class Inside(threading.local):
    """Whether this thread is inside a `FoldedNet` that has found packed convolutions possible for all of its layers."""

    packed = False


INSIDE = Inside()


class FoldedConv2d(nn.Module):
    """A convolution with bias and activation, by packed weights where nothing is differentiated or traced.

    Inside a `FoldedNet`, which asks once for all its layers what is possible, a call costs little more than its
    operator: a network of 150 small convolutions would spend as much time on the questions as on the arithmetic.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, like: nn.Conv2d, activation: str = "none") -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.geometry: dict[str, Any] = {
            "stride": tuple(like.stride),
            "padding": tuple(like.padding),
            "dilation": tuple(like.dilation),
            "groups": like.groups,
        }
        self.activation = activation
        self._ready: dict[Any, tuple[Any, tuple[Any, ...]]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H', W']."""
        if INSIDE.packed or (not onednn.is_traced(x) and onednn.obstacle(x, [self.weight]) is None):
            x = x.contiguous(memory_format=torch.channels_last)
            weight, bias = self.weight, self.bias
            version = (weight.data_ptr(), None if weight.is_inference() else weight._version)
            held = self._ready.get(x.shape)
            if held is None or held[0] != version or version[1] is None:
                held = (version, self._arguments(x))
                if len(self._ready) >= 8:
                    self._ready.clear()
                self._ready[x.shape] = held
            packed, *rest = held[1]
            return onednn.operator()(x, packed, bias, *rest)
        y = F.conv2d(x, self.weight, self.bias, **self.geometry)
        return {"none": lambda t: t, "relu": F.relu, "relu6": F.relu6}[self.activation](y)

    def _arguments(self, x: Tensor) -> tuple[Any, ...]:
        """Return what the packed convolution takes beside the images and the bias."""
        g = self.geometry
        name, numbers = onednn.ACTIVATIONS[self.activation]
        packed = onednn.pack(self.weight, x, **g)
        return (packed, list(g["padding"]), list(g["stride"]), list(g["dilation"]), g["groups"], name, numbers, "")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the packed weights: they belong to this machine and are made again."""
        return {**self.__dict__, "_ready": {}}

    def extra_repr(self) -> str:
        return f"{list(self.weight.shape)}, {self.activation}, {self.geometry}"


class FoldedChain(nn.Module):
    """A linear chain whose norm went into the last factor's weights and a shift; the backend stays the chain's own."""

    def __init__(self, chain: LinearChain, shift: Tensor) -> None:
        super().__init__()
        self.chain = chain
        self.shift = nn.Parameter(shift.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H', W']."""
        return self.chain(x) + self.shift.view(1, -1, 1, 1)


class FoldedInvertedBlock(nn.Module):
    """`InvertedInterleavedBlock` as three convolutions: up, depthwise, down in ``parts`` summed outputs."""

    def __init__(self, expand: nn.Module, depthwise: nn.Module, project: nn.Module, parts: int, identity: bool) -> None:
        super().__init__()
        self.expand, self.depthwise, self.project = expand, depthwise, project
        self.parts, self.has_identity = parts, identity

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H', W']."""
        z = self.project(self.depthwise(self.expand(x)))
        width = z.shape[1] // self.parts
        y = z[:, :width]
        for part in range(1, self.parts):
            y = y + z[:, part * width : (part + 1) * width]
        return x + y if self.has_identity else y
