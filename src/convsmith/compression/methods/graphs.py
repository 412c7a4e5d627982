"""A network as a JSON graph of torch operators: how an int8 model is stored and rebuilt without pickle or tracing.

Only operators of a short list of namespaces are written or read, so a recipe cannot name arbitrary code. Tensors are
not part of the JSON: they stay in the state, under the names the graph reads them by.
"""

from __future__ import annotations

import math
import operator
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

from convsmith.errors import InvalidArgument

NAMESPACES = ("aten", "quantized_decomposed")
_OPERATORS = {f"operator.{n}": getattr(operator, n) for n in ("getitem", "add", "mul", "sub", "floordiv", "mod", "neg")}
_REGIONS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")
_KINDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def graph_to_json(graph: fx.GraphModule, structure: Any = 0) -> dict[str, Any]:
    """Return nodes and tensor descriptions of ``graph``; see `graph_from_json`.

    ``structure``: what the network returns, with numbers in place of tensors; the graph itself gives them in a row.

    Raises:
        InvalidArgument: the graph calls something outside `NAMESPACES` (a custom operator, a sub-module).
    """
    nodes, tensors = [], {}
    for node in graph.graph.nodes:
        if node.op == "call_module" and not node.users:
            continue  # guards that torch.export adds; the shape is checked by the operators themselves
        entry: dict[str, Any] = {"name": node.name, "op": node.op}
        if node.op == "get_attr":
            value = attrgetter(str(node.target))(graph)
            if not isinstance(value, torch.Tensor):
                raise InvalidArgument("a graph of plain operators is needed", given=f"a region in {node.target}")
            kind = "buffer"
            if isinstance(value, nn.Parameter):
                kind = "parameter" if value.requires_grad else "frozen"
            entry["target"] = str(node.target)
            tensors[str(node.target)] = {
                "shape": list(value.shape),
                "dtype": str(value.dtype).removeprefix("torch."),
                "kind": kind,
            }
        elif node.op == "call_function":
            entry["target"] = _name_of(node.target)
            entry["args"], entry["kwargs"] = _encode(node.args), _encode(node.kwargs)
        elif node.op == "output":
            row = node.args[0]
            entry["args"] = _encode((_filled(structure, list(row) if isinstance(row, tuple | list) else [row]),))
        elif node.op != "placeholder":
            raise InvalidArgument("a graph of plain operators is needed", given=f"{node.op} {node.target}")
        nodes.append(entry)
    return {"nodes": nodes, "tensors": tensors}


def inline_regions(program: fx.GraphModule) -> None:
    """Write the graphs of regions without gradients or with autocast off in the place of their calls, in place.

    torch.export keeps such a region as a graph of its own; when the network runs without either, it changes nothing.
    """
    nodes = program.graph.nodes
    while found := next((n for n in nodes if getattr(n.target, "__name__", "") in _REGIONS and _is_plain(n)), None):
        at = next(i for i, given in enumerate(found.args) if isinstance(given, fx.Node))
        inner: Any = getattr(program, found.args[at].target)
        entries = [n for n in inner.graph.nodes if n.op == "placeholder"]
        with program.graph.inserting_before(found):
            row: Any = program.graph.graph_copy(inner.graph, dict(zip(entries, found.args[at + 1 :], strict=True)))
        for user in list(found.users):  # each takes one of the outputs
            user.replace_all_uses_with(row[user.args[1]])
            program.graph.erase_node(user)
        program.graph.erase_node(found)
    program.graph.eliminate_dead_code()
    program.recompile()


def _is_plain(call: fx.Node) -> bool:
    return getattr(call.target, "__name__", "") == _REGIONS[0] or call.args[2] is False


def graph_from_json(value: dict[str, Any]) -> fx.GraphModule:
    """Return the graph that `graph_to_json` described, its tensors zero until a state is loaded."""
    import torch.ao.quantization.fx  # registers the quantize and dequantize operators

    tensors: dict[str, Any] = {}
    for name, form in value["tensors"].items():
        tensor = torch.zeros(form["shape"], dtype=getattr(torch, form["dtype"]))
        learns = form["kind"] == "parameter" and tensor.is_floating_point()
        tensors[name] = tensor if form["kind"] == "buffer" else nn.Parameter(tensor, requires_grad=learns)
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in value["nodes"]:
        name, op = entry["name"], entry["op"]
        if op == "placeholder":
            nodes[name] = graph.placeholder(name)
        elif op == "get_attr":
            nodes[name] = graph.create_node("get_attr", entry["target"], name=name)
        elif op == "output":
            graph.output(_decode(entry["args"], nodes)[0])
        else:
            nodes[name] = graph.create_node(
                "call_function",
                _operator(entry["target"]),
                _decode(entry["args"], nodes),
                _decode(entry["kwargs"], nodes),
                name=name,
            )
    graph.lint()
    return fx.GraphModule(tensors, graph)


def _filled(structure: Any, row: list[Any]) -> Any:
    """Return ``structure`` with the members of ``row`` in place of their numbers."""
    if isinstance(structure, dict) and all(isinstance(key, str) for key in structure):
        return {key: _filled(value, row) for key, value in structure.items()}
    if type(structure) in (tuple, list):
        return type(structure)(_filled(value, row) for value in structure)
    if isinstance(structure, int):
        return row[structure]
    raise InvalidArgument(
        "an int8 network returns tensors in tuples, lists and dictionaries with names",
        given=f"{type(structure).__name__} {structure}",
        hint="wrap the network so that it returns one of these, or use int8 with mode='weight-only'",
    )


def _name_of(target: Any) -> str:
    if getattr(target, "namespace", None) in NAMESPACES:
        return str(target)
    for name, function in _OPERATORS.items():
        if target is function:
            return name
    raise InvalidArgument(
        "an int8 graph may only call torch's own operators", given=str(target), hint="leave that part out of the model"
    )


def _operator(name: str) -> Any:
    if name in _OPERATORS:
        return _OPERATORS[name]
    space, *rest = name.split(".")
    if space in NAMESPACES and len(rest) == 2 and hasattr(getattr(torch.ops, space), rest[0]):
        return getattr(getattr(getattr(torch.ops, space), rest[0]), rest[1])
    raise InvalidArgument("the recipe names an operator this torch lacks or that is not allowed", given=name)


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple | list):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": {key: _encode(v) for key, v in value.items()}}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, cls in _KINDS.items():
        if isinstance(value, cls):
            return {kind: str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidArgument("a graph argument cannot be written as JSON", given=f"{type(value).__name__}: {value}")


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "node":
        return nodes[inner]
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(_decode(v, nodes) for v in inner)
    if kind == "dict":
        return {key: _decode(v, nodes) for key, v in inner.items()}
    if kind == "float":
        return float(inner)
    if kind == "device":
        return torch.device(inner)
    return getattr(torch, inner)
