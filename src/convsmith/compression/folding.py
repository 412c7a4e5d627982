"""Turn a trained network into the leanest graph that computes the same: norms and permutations folded into weights.

A batch normalisation in evaluation mode is a scale and a shift of the convolution before it. A channel permutation
commutes with a depthwise convolution (permute its kernels), with a norm (permute its affine) and with an activation; at
the next group convolution it becomes a choice of blocks: with G1 groups up and G2 down the permuted channels of block j
are G1 runs of neighbours, so the group convolution splits into G1 G2 blocks whose outputs are added, and nothing moves.
The folded graph holds convolutions, activations and additions; it exports without a gather.

On a CPU the folded convolutions run on weights packed once, channels_last, with the activation on the way out, and a
large batch is taken in pieces whose activations stay in the cache where that is measured to be faster.
"""

from __future__ import annotations

import copy
import math
import time

import torch
from torch import Tensor, fx, nn

from convsmith.compression.cost import cost
from convsmith.compression.folded import INSIDE, FoldedChain, FoldedConv2d, FoldedInvertedBlock
from convsmith.compression.operators import onednn
from convsmith.compression.operators.blocks import InvertedInterleavedBlock, MergeAndRunBlock
from convsmith.compression.operators.interleaved import ChannelOrder, LinearChain
from convsmith.errors import InvalidArgument

#: bytes of the largest activation of one piece of a batch (measured: several of them share the last cache level)
PIECE_BYTES = 3 << 20


class FoldedNet(nn.Module):
    """A folded network; on a CPU a batch may run in pieces that fit the cache, where that is measured to be faster."""

    def __init__(self, net: nn.Module, in_pieces: bool = True) -> None:
        super().__init__()
        self.net = net
        self.in_pieces = in_pieces
        self._pieces: dict[tuple[int, ...], int] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to what the network gives."""
        weights = list(self.net.parameters()) if torch.is_grad_enabled() else []
        if onednn.is_traced(x) or onednn.obstacle(x, weights) is not None:
            return self.net(x)
        step = self._pieces.get(tuple(x.shape)) if self.in_pieces else len(x)
        steps = self._steps(x) if step is None else ()
        before, INSIDE.packed = INSIDE.packed, True
        try:
            if step is None:
                step = self._pieces[tuple(x.shape)] = self._fastest(x, steps)
            return self._run(x, step)
        finally:
            INSIDE.packed = before

    def _run(self, x: Tensor, step: int) -> Tensor:
        return self.net(x) if step >= len(x) else torch.cat([self.net(piece) for piece in x.split(step)])

    def _steps(self, x: Tensor) -> tuple[int, ...]:
        """Return the sizes worth measuring: pieces that fit the cache, four times as large ones, the whole batch."""
        largest = max(layer.activations for layer in cost(self.net, tuple(x.shape[1:])).by_layer.values())
        fitting = max(1, PIECE_BYTES // (4 * max(1, largest)))
        return (len(x),) if fitting >= len(x) else (fitting, min(len(x), 4 * fitting), len(x))

    def _fastest(self, x: Tensor, steps: tuple[int, ...]) -> int:
        """Measure, once per input shape."""
        if len(steps) == 1:
            return steps[0]
        seconds = dict.fromkeys(steps, math.inf)
        for repetition in range(3):
            for step in seconds:
                began = time.perf_counter()
                self._run(x, step)
                if repetition:
                    seconds[step] = min(seconds[step], time.perf_counter() - began)
        return min(seconds, key=seconds.__getitem__)


def fold_for_inference(model: nn.Module, *, in_pieces: bool = True) -> nn.Module:
    """Return a network for inference that computes what ``model`` computes in evaluation mode, in fewer operators.

    Batch normalisations behind convolutions and chains, ReLU and ReLU6 behind convolutions and the permutations of
    `InvertedInterleavedBlock` are folded; everything else is kept. The model is not changed.

    Args:
        model: one that ``torch.fx`` can trace (ours, timm's and torchvision's convolutional networks can).
        in_pieces: on a CPU, run large batches piece by piece where that is faster (measured once per input shape).

    Raises:
        InvalidArgument: if the model cannot be traced; says where.
    """
    own = copy.deepcopy(model).eval().requires_grad_(False)
    tracer = _Tracer()
    try:
        graph = tracer.trace(own)
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError) as error:
        raise InvalidArgument(
            "only a network whose forward pass torch.fx can trace can be folded",
            argument=f"fold_for_inference({type(model).__name__})",
            given=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            hint="avoid control flow that depends on a tensor, or fold its convolutional parts",
        ) from error
    net = fx.GraphModule(own, graph)
    modules = dict(net.named_modules())
    for node in list(graph.nodes):
        if node.op != "call_module" or node.target not in modules:
            continue
        module = modules[str(node.target)]
        if isinstance(module, InvertedInterleavedBlock):
            _replace(net, node, _folded_block(module))
        elif isinstance(module, MergeAndRunBlock):
            module.branches = _folded_sequence(module.branches)
            if isinstance(module.shortcut, nn.Sequential):
                module.shortcut = _folded_sequence(module.shortcut)
        elif isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            _fold_behind(net, graph, modules, node)
        elif isinstance(module, LinearChain):
            _fold_chain(net, graph, modules, node)
    graph.eliminate_dead_code()
    net.delete_all_unused_submodules()
    net.recompile()
    return FoldedNet(net, in_pieces).eval()


class _Tracer(fx.Tracer):
    """Keeps our blocks and every norm, timm's fused ones too, as leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, LinearChain | InvertedInterleavedBlock | MergeAndRunBlock | ChannelOrder)
        return ours or isinstance(m, nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return what an evaluation-mode batch norm does, ``y = scale x + shift``, per channel."""
    if norm.running_mean is None or norm.running_var is None:
        raise InvalidArgument("a norm without running statistics cannot be folded", given=repr(norm))
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _folded(convolution: nn.Conv2d, norm: nn.Module, activation: nn.Module | None = None) -> FoldedConv2d:
    weight, bias = _scaled(convolution, norm)
    return FoldedConv2d(weight, bias, convolution, _activation_name(activation) or "none")


def _scaled(convolution: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor | None]:
    if not isinstance(norm, nn.BatchNorm2d):
        return convolution.weight, convolution.bias
    scale, shift = scale_and_shift(norm)
    bias = shift if convolution.bias is None else shift + scale * convolution.bias
    return convolution.weight * scale.view(-1, 1, 1, 1), bias


def _activation_name(module: nn.Module | None) -> str | None:
    """Return the name a folded convolution knows the activation by; ``None``: it stays a module."""
    if module is None or isinstance(module, nn.Identity):
        return "none"
    if type(module) is nn.ReLU:
        return "relu"
    if type(module) is nn.ReLU6 or (type(module) is nn.Hardtanh and (module.min_val, module.max_val) == (0.0, 6.0)):
        return "relu6"
    return None


def _folded_block(block: InvertedInterleavedBlock) -> nn.Module:
    norms, acts = (block.norm1, block.norm2, block.norm3), (block.act1, block.act2)
    plain = all(isinstance(norm, nn.BatchNorm2d) for norm in norms)
    if not plain or any(_activation_name(act) is None for act in acts):
        return block
    up, down, hidden = block.groups_up, block.groups_down, block.hidden_channels
    expand = _folded(block.expand, block.norm1, block.act1)
    depthwise = _folded(block.depthwise, block.norm2, block.act2)
    weight, bias = _scaled(block.project, block.norm3)
    assert bias is not None
    if up > 1:  # channel c of the expansion stands at position back[c] after the shuffle
        assert isinstance(block.order, ChannelOrder)
        back = block.order.order.inverse().index().to(weight.device)
        depthwise.weight.data = depthwise.weight.data[back]
        assert depthwise.bias is not None
        depthwise.bias.data = depthwise.bias.data[back]
    order_out = block.order_out
    layer = copy.copy(block.project)
    if not isinstance(order_out, ChannelOrder) and hidden % (up * down) == 0:
        # block (g1, j) of the expansion, in its own order, feeds output block j: add the G1 partial outputs
        parts = up
        rows = weight.view(down, block.out_channels // down, hidden // (up * down), up)
        weight = rows.permute(3, 0, 1, 2).reshape(up * block.out_channels, hidden // (up * down), 1, 1)
        bias = torch.cat([bias, bias.new_zeros((up - 1) * block.out_channels)])
        layer.groups = up * down
    else:
        parts = 1
        members = hidden // down
        blocks = weight.view(down, -1, 1, members) * torch.eye(down, dtype=weight.dtype).view(down, 1, down, 1)
        weight = blocks.reshape(block.out_channels, hidden, 1, 1)
        if up > 1:
            weight = weight[:, back]
        if isinstance(order_out, ChannelOrder):
            index = order_out.order.index()
            weight, bias = weight[index], bias[index]
        layer.groups = 1
    project = FoldedConv2d(weight, bias, layer)
    return FoldedInvertedBlock(expand, depthwise, project, parts, block.has_identity)


def _folded_sequence(layers: nn.Sequential) -> nn.Sequential:
    out: list[nn.Module] = []
    rest = list(layers)
    while rest:
        layer = rest.pop(0)
        if isinstance(layer, nn.Conv2d) and rest and isinstance(rest[0], nn.BatchNorm2d):
            norm = rest.pop(0)
            activation = rest.pop(0) if rest and _activation_name(rest[0]) is not None else None
            layer = _folded(layer, norm, activation)
        out.append(layer)
    return nn.Sequential(*out)


def _only_user(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[fx.Node, nn.Module] | None:
    users = list(node.users)
    if len(users) == 1 and users[0].op == "call_module":
        return users[0], modules[str(users[0].target)]
    return None


def _fold_behind(net: fx.GraphModule, graph: fx.Graph, modules: dict[str, nn.Module], node: fx.Node) -> None:
    """Fold the norm and the activation behind a convolution into it."""
    convolution = modules[str(node.target)]
    assert isinstance(convolution, nn.Conv2d)
    weight, bias = convolution.weight, convolution.bias
    activation = "none"
    after = _only_user(node, modules)
    if after is not None and isinstance(after[1], nn.BatchNorm2d):
        user, norm = after
        weight, new_bias = _scaled(convolution, norm)
        bias = new_bias  # type: ignore[assignment]
        inner = getattr(norm, "act", None)  # timm's norm with an activation inside
        name = _activation_name(inner)
        if name is not None:
            activation = name
            user.replace_all_uses_with(node)
            graph.erase_node(user)
        else:
            assert inner is not None
            _replace(net, user, inner)
        after = _only_user(node, modules) if activation == "none" and name is not None else None
    if after is not None and _activation_name(after[1]) not in (None, "none"):
        activation = _activation_name(after[1]) or "none"
        after[0].replace_all_uses_with(node)
        graph.erase_node(after[0])
    _replace(net, node, FoldedConv2d(weight, bias, convolution, activation))


def _fold_chain(net: fx.GraphModule, graph: fx.Graph, modules: dict[str, nn.Module], node: fx.Node) -> None:
    """Fold the norm behind a chain into its last factor and a shift."""
    chain = modules[str(node.target)]
    assert isinstance(chain, LinearChain)
    after = _only_user(node, modules)
    if after is None or type(after[1]) is not nn.BatchNorm2d:
        return
    scale, shift = scale_and_shift(after[1])
    order = chain.wiring.final_order
    scale_of_factor = scale if order is None else scale[order.inverse().index().to(scale.device)]
    chain = copy.deepcopy(chain)  # it may stand in a second place, before another norm
    with torch.no_grad():
        chain.weights[-1].mul_(scale_of_factor.view(-1, 1, 1, 1))
    after[0].replace_all_uses_with(node)
    graph.erase_node(after[0])
    _replace(net, node, FoldedChain(chain, shift))


def _replace(net: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Let ``node`` call ``module`` under a name of its own (a module used twice is folded twice, each its own way)."""
    name = f"folded_{node.name}"
    net.add_submodule(name, module.eval())
    node.target = name
