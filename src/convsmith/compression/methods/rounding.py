"""Round the weights of an int8 graph for what its layers are shown, not for themselves.

Weights rounded one by one move a layer's output by the sum of all their errors. Here the columns of a layer's weights
are rounded in turn and what each rounding costs is made good by the columns that are still free, by the second moments
of the layer's inputs: with ``E[x x^T] + lambda I = H`` and ``U`` the upper Cholesky factor of ``H^-1``, column j leaves
``e_j = (w_j - q_j) / U_jj`` and the later columns become ``w_k - e_j U_jk`` (Frantar et al. 2023, "GPTQ", section 3.3).
The bias then takes over what the mean still lacks (Nagel et al. 2019, "Data-free quantization through weight
equalization and bias correction", section 4.2). Layers are taken in the order they run, on what the layers before them,
already rounded, make of the images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from convsmith.compression.planning.moments import (
    SAMPLES,
    Moments,
    chosen_positions,
    enough,
    sampled_inputs,
    sampled_outputs,
)

#: images used at most: activations of all of them are in memory at once
IMAGES = 48
#: lambda, in units of the inputs' mean square
RIDGE = 0.01
_LAYERS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)


def round_to_grid(weight: Tensor, moments: Moments, scale: Tensor, low: int, high: int) -> Tensor:
    """Return codes [g, o, d] for ``weight`` [g, o, d] with steps ``scale`` [g, o], see the module's formula.

    Without samples enough for the moments every weight is rounded to the nearest code.
    """
    step, width = scale.clamp_min(1e-12), weight.shape[-1]
    if not enough(moments.count, width):
        return (weight / step[..., None]).round().clamp(low, high)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments.damped(RIDGE))), upper=True)
    left, codes = weight.clone(), torch.zeros_like(weight)
    for j in range(width):
        codes[..., j] = (left[..., j] / step).round().clamp(low, high)
        error = (left[..., j] - codes[..., j] * step) / upper[:, None, j, j]
        left[..., j + 1 :] -= error[..., None] * upper[:, None, j, j + 1 :]
    return codes


def round_by_moments(graph: fx.GraphModule, reference: fx.GraphModule, images: Tensor) -> None:
    """Choose the codes and biases of ``graph`` anew, in place.

    Args:
        graph: the int8 network: its layers read dequantised codes, one scale an output channel.
        reference: the same network before the conversion, with nodes of the same names.
        images: [B, C, H, W], at most `IMAGES` are used.
    """
    images = images[:IMAGES]
    with torch.no_grad():
        wanted = _Targets(reference)
        wanted.run(images)
        _Rounding(graph, wanted.found).run(images)


def _layer(node: fx.Node, weight: Tensor) -> Any:
    """Return an empty module that says what a node of the graph computes."""
    if node.target is torch.ops.aten.linear.default:
        return nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    values: list[Any] = [1, 0, 1, 1]  # stride, padding, dilation, groups
    values[: len(node.args) - 3] = node.args[3:]
    *pairs, groups = (tuple(x) * (2 // len(x)) if isinstance(x, list | tuple) else x for x in values)
    conv: Any = nn.Conv2d
    return conv(weight.shape[1] * groups, len(weight), tuple(weight.shape[2:]), *pairs, groups, device="meta")


class _Targets(fx.Interpreter):
    """Runs a network and keeps samples of what its layers give, by node name, and their float weights."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[str, tuple[Tensor, Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if n.target in _LAYERS:
            weight = self.fetch_args_kwargs_from_env(n)[0][1]
            layer = _layer(n, weight)
            self.found[n.name] = weight, sampled_outputs(layer, output, _positions(layer, output)).clone()
        return output


class _Rounding(fx.Interpreter):
    """Runs an int8 network and rounds every layer anew once its inputs are known."""

    def __init__(self, graph: fx.GraphModule, wanted: dict[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__(graph)
        self.wanted = wanted

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        rounded = n.target in _LAYERS and n.name in self.wanted and self._rounded(n, output)
        return super().run_node(n) if rounded else output

    def _rounded(self, node: fx.Node, output: Tensor) -> bool:
        """Write new codes and a new bias where the layer reads codes with one scale an output channel."""
        read: Any = node.args[1]
        if str(read.target) != "quantized_decomposed.dequantize_per_channel.default" or read.args[3] != 0:
            return False
        # small layers keep their weights in float beside the operator that makes codes of them
        coded = read.args[0].op == "get_attr"
        source = read.args[0] if coded else read.args[0].args[0]
        stored, scales = self.fetch_attr(source.target), self.fetch_attr(read.args[1].target)
        low, high = read.args[4:6]
        inputs, _, bias, *_ = (*self.fetch_args_kwargs_from_env(node)[0], None)
        own, wanted = self.wanted[node.name]
        layer: Any = _layer(node, own)
        groups = getattr(layer, "groups", 1)
        weight = own.double().reshape(groups, len(own) // groups, -1)
        moments = Moments.of(
            sampled_inputs(layer, inputs, _positions(layer, output), output.shape[-1]),
            wanted.reshape(-1, *weight.shape[:2]),
            centred=bias is not None,
        )
        step = scales.double().reshape(*weight.shape[:2], 1)
        codes = round_to_grid(weight, moments, step[..., 0], low, high)
        self.env[read] = (codes * step).reshape(own.shape).to(output.dtype)
        stored.copy_(codes.reshape(own.shape) if coded else self.env[read])
        if bias is not None:
            bias.copy_(moments.bias(codes * step))
        return True


def _positions(layer: nn.Module, output: Tensor) -> Tensor:
    return chosen_positions(layer, tuple(output.shape), -(-SAMPLES // len(output)), 0)
