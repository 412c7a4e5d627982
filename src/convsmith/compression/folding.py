"""Turn a trained network into the leanest graph that computes the same: norms and permutations folded into weights.

A batch normalisation in evaluation mode is a scale and a shift of the convolution before it. A linear chain becomes its
spatial convolution and one 1x1 convolution that has absorbed every later factor and permutation, where that is cheaper
than moving data; IGCV3's block becomes three convolutions. The folded graph holds plain ``nn.Conv2d``, activations,
additions and concatenations of narrow tensors, so that ONNX Runtime and ``torch.compile`` see nothing they do not know.
"""

from __future__ import annotations

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from convsmith.arguments import checked
from convsmith.compression.folded import folded_chain, folded_inverted_block, pointwise_for_runtime
from convsmith.compression.operators.blocks import InvertedInterleavedBlock, MergeAndRunBlock
from convsmith.compression.operators.interleaved import ChannelOrder, LinearChain
from convsmith.errors import refusing
from convsmith.inspection.modes import copied, is_hooked, unwrap


@checked
def fold_for_inference(model: nn.Module) -> nn.Module:
    """Return a network for inference that computes what ``model`` computes in evaluation mode, in fewer operators.

    What is not named in the module's description is kept. Grouped 1x1 convolutions whose groups do not fill a vector of
    the usual runtimes are written out dense (`convsmith.compression.folded.pointwise_for_runtime`). The model is not
    changed.

    Args:
        model: one that ``torch.fx`` can trace (ours, timm's and torchvision's convolutional networks can).

    Raises:
        InvalidArgument: if the model cannot be traced; says why.

    Examples:
        >>> folded = fold_for_inference(model)
    """
    from timm.layers import Conv2dSame

    own = copied(unwrap(model)).eval().requires_grad_(False)
    rule = "only a network whose forward pass torch.fx can trace can be folded"
    hint = "avoid control flow that depends on a tensor, or fold its convolutional parts"
    with refusing(rule, Exception, argument=f"fold_for_inference({type(model).__name__})", hint=hint):
        graph = _Tracer().trace(own)
    net = fx.GraphModule(own, graph)
    modules = dict(net.named_modules())
    for node in list(graph.nodes):
        if node.op != "call_module" or node.target not in modules:
            continue
        module = modules[str(node.target)]
        if not _is_plain(module):
            continue
        if isinstance(module, InvertedInterleavedBlock):
            _replace(net, node, folded_inverted_block(module))
        elif isinstance(module, MergeAndRunBlock):
            for name in ("branches", "shortcut"):
                if isinstance(getattr(module, name), nn.Sequential):
                    setattr(module, name, fold_for_inference(getattr(module, name)))
        elif type(module) in (nn.Conv2d, Conv2dSame) or isinstance(module, LinearChain):
            _fold_norm_behind(net, graph, modules, node)
    graph.eliminate_dead_code()
    net.delete_all_unused_submodules()
    net.recompile()
    return net.eval()


class _Tracer(fx.Tracer):
    """Keeps our blocks, every norm, and what timm says cannot be traced (convolutions that pad as TensorFlow's do)."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        from timm.layers import is_notrace_module

        whole = isinstance(m, LinearChain | InvertedInterleavedBlock | MergeAndRunBlock | ChannelOrder | nn.BatchNorm2d)
        return whole or is_notrace_module(type(m)) or super().is_leaf_module(m, module_qualified_name)


def _is_plain(module: nn.Module) -> bool:
    """Return whether no hook and no parametrisation changes what the stored weights give."""
    return not any(is_hooked(m) or is_parametrized(m) for m in module.modules())


def _fold_norm_behind(net: fx.GraphModule, graph: fx.Graph, modules: dict[str, nn.Module], node: fx.Node) -> None:
    """Fold the norm behind a convolution or a chain into it; what timm put inside the norm stays behind."""
    layer, users = modules[str(node.target)], list(node.users)
    norm = modules[str(users[0].target)] if len(users) == 1 and users[0].op == "call_module" else None
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or not _is_plain(norm):
        norm = None
    if isinstance(layer, LinearChain):
        made: nn.Module = folded_chain(layer, norm)
    else:
        assert isinstance(layer, nn.Conv2d)
        made = pointwise_for_runtime(layer if norm is None else fuse_conv_bn_eval(layer, norm))
    _replace(net, node, made)
    if norm is None:
        return
    inner = [child for child in norm.children() if not isinstance(child, nn.Identity)]
    if inner:
        _replace(net, users[0], nn.Sequential(*inner))
    else:
        users[0].replace_all_uses_with(node)
        graph.erase_node(users[0])


def _replace(net: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Let ``node`` call ``module`` under a name of its own (a module used twice is folded twice, each its own way)."""
    name = f"folded_{node.name}"
    net.add_submodule(name, module.eval())
    node.target = name
