"""Which tensors of an exported network become eight-bit integers, so that ONNX Runtime multiplies integers throughout.

Every convolution and linear layer reads codes and gives codes: its output is rounded behind what fuses into it (a
normalisation that trains, a rectifier). Sums of two such maps, poolings, concatenations and reshapings between them
stay in codes as well. A sum that is fused into the convolution before it, as torch's compiler likes it, would leave
that convolution in floating point everywhere else: ONNX Runtime takes a layer as int8 only between a dequantisation
and a quantisation of its own. All else (products of activations, norms of tokens, a second-order pooling) stays in
floating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

_ATEN: Any = torch.ops.aten
LAYERS = (_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.linear.default)
_SUMS = (_ATEN.add.Tensor, _ATEN.add_.Tensor)
#: what computes with the codes of a layer's output at no loss
_FUSED = (
    _ATEN.batch_norm.default,
    _ATEN.relu.default,
    _ATEN.relu_.default,
    _ATEN.relu6.default,
    _ATEN.hardtanh.default,
    _ATEN.hardtanh_.default,
)
#: outputs are codes of the inputs' own scale
_PASSING = (
    _ATEN.max_pool2d.default,
    _ATEN.avg_pool2d.default,
    _ATEN.adaptive_avg_pool2d.default,
    _ATEN.flatten.using_ints,
    _ATEN.cat.default,
    _ATEN.pad.default,
)
_KEY = "quantization_annotation"


@dataclass(frozen=True)
class Quantiser:
    """What torchao's PT2E route asks for annotations; see the module. ``skip``: modules that stay in float, by name."""

    training: bool
    skip: Sequence[str] = ()

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        """Leave the graph as it is."""
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Accept every graph."""

    def prepare_obs_or_fq_callback(self, model: fx.GraphModule, observers: Any) -> None:
        """Leave the observers as they are."""

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Say in the nodes' ``meta`` what is rounded, from the first node to the last."""
        from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, SharedQuantizationSpec

        codes, weights = _specs(self.training)
        coded: set[fx.Node] = set()

        def mark(node: fx.Node, read: dict[fx.Node, Any], given: Any) -> None:
            fused = [] if node.target in _PASSING else _fused(node)
            node.meta[_KEY] = QuantizationAnnotation(input_qspec_map=read, _annotated=True)
            for inner in fused:
                inner.meta[_KEY] = QuantizationAnnotation(_annotated=True)
            last = [node, *fused][-1]
            last.meta[_KEY].output_qspec = given
            coded.add(last)

        for node in model.graph.nodes:
            if node.op != "call_function" or _inside(node, self.skip):
                continue
            inputs = node.all_input_nodes
            if node.target in LAYERS:
                image, weight = node.args[:2]
                # a matrix product of codes may give floating point; what the network returns is not rounded
                rounds = node.target != LAYERS[2] and all(
                    user.op != "output" for user in [node, *_fused(node)][-1].users
                )
                mark(node, {image: codes, weight: weights}, codes if rounds else None)
            elif node.target in _SUMS and len(inputs) == 2 and coded.issuperset(inputs) and _is_map(node):
                mark(node, dict.fromkeys(inputs, codes), codes)
            elif node.target in _PASSING and coded.issuperset(inputs) and _keeps_codes(node):
                first, *others = inputs
                shared = SharedQuantizationSpec((first, node))
                mark(node, {first: codes, **dict.fromkeys(others, shared)}, shared)
        return model


def _fused(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that fuse into ``node``, in order: its output is rounded behind the last of them."""
    found: list[fx.Node] = []
    while len(node.users) == 1 and (user := next(iter(node.users))).target in _FUSED and user.args[0] is node:
        found.append(node := user)
    return found


def _keeps_codes(node: fx.Node) -> bool:
    """Return whether what a node adds has a code: zero has one in every scale, the edge of a padding another one."""
    return node.target is not _ATEN.pad.default or (node.args[2:3] in ((), ("constant",)) and not any(node.args[3:]))


def _is_map(node: fx.Node) -> bool:
    """Return whether a node gives maps [B, C, H, W]: sums of tokens have ranges that eight bits do not hold."""
    return getattr(node.meta.get("val"), "ndim", 0) == 4


def _inside(node: fx.Node, names: Sequence[str]) -> bool:
    """Return whether a node was exported from one of these modules."""
    paths = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return any(path == name or path.startswith(f"{name}.") for path in paths for name in names)


def _specs(training: bool) -> tuple[Any, Any]:
    """Return what is said of activations (one scale a tensor) and of weights (one scale an output)."""
    from torchao.quantization.pt2e import (
        FusedMovingAvgObsFakeQuantize,
        HistogramObserver,
        MovingAveragePerChannelMinMaxObserver,
        PerChannelMinMaxObserver,
    )
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    least = 2**-12
    activations: Any = FusedMovingAvgObsFakeQuantize if training else HistogramObserver
    weights: Any = (
        FusedMovingAvgObsFakeQuantize.with_args(eps=least, observer=MovingAveragePerChannelMinMaxObserver)
        if training
        else PerChannelMinMaxObserver.with_args(eps=least)
    )
    codes = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=activations.with_args(eps=least),
    )
    signed = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=weights,
    )
    return codes, signed
