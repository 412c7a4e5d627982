"""The runtimes a compressed network ships in: ONNX Runtime, `torch.compile` with frozen weights, plain torch.

`runnable` turns a network into a function of one batch in the runtime asked for, so that all are timed alike.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import one_of
from convsmith.compression.methods.int8 import Int8Model
from convsmith.compression.methods.method import HISTORY
from convsmith.errors import RunFailed, require
from convsmith.files import replacing
from convsmith.inspection.modes import copied, evaluating
from convsmith.inspection.outputs import joined_output

#: names of runtimes, in the order of the table
RUNTIMES = ("torch", "compile", "onnxruntime")
#: batch sizes at which a file is compared with the network
CHECKED = (1, 3)


def check_runtime(name: str) -> None:
    """Refuse an unknown runtime, with close matches, and one whose packages are missing."""
    one_of("runtime", name, RUNTIMES)
    if name == "onnxruntime":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require(module, "onnx")


def write_onnx(model: nn.Module, images: Tensor, file: Path) -> Path:
    """Write ``model`` in evaluation mode as ONNX with a free batch size; int8 weights stay int8 (QDQ).

    Args:
        model: any network of one image tensor; an int8 graph too.
        images: [B, C, H, W] with B at least 2, for the shapes.
        file: where to write.

    Raises:
        RunFailed: torch.onnx cannot express the network; the message names the operator or the reason.
    """
    check_runtime("onnxruntime")
    work = copied(model).eval().cpu().to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program: Any = torch.onnx.export(
                work,
                (images.detach().cpu(),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
                input_names=["images"],
            )
        except Exception as error:
            cause = error.__cause__ or error
            raise RunFailed(
                "torch.onnx cannot write this network",
                argument="onnx",
                given=f"{type(cause).__name__}: {str(cause).partition(chr(10))[0][:300]}",
                hint="leave out the layer it names, or use --format torch-export",
            ) from error
    program.optimize()
    _absorb_paddings(program.model)
    with replacing(file) as draft:
        program.save(str(draft), external_data=False)
    return file


def _absorb_paddings(model: Any) -> None:
    """Let convolutions pad by themselves where zeros stand around their input, in place.

    torch pads both sides alike and writes "same" padding at stride two as an operator of its own; ONNX's convolution
    takes every side by itself, and ONNX Runtime has no padding of codes in its order of channels.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in [node for node in model.graph if node.op_type == "Pad" and len(node.inputs) <= 3]:
        sides, filling = ([*map(onnx_ir.convenience.get_const_tensor, node.inputs[1:]), None])[:2]
        mode = node.attributes.get("mode")
        if sides is None or (len(node.inputs) == 3 and (filling is None or filling.numpy() != 0)):
            continue
        pads, between = sides.numpy().tolist(), [node.outputs[0]]
        if len(pads) != 8 or any(pads[i] for i in (0, 1, 4, 5)) or min(pads) < 0 or (mode and mode.value != "constant"):
            continue
        while (users := between[-1].consumers()) and users[0].op_type in ("QuantizeLinear", "DequantizeLinear"):
            between.append(users[0].outputs[0])
        if any(len(value.uses()) != 1 for value in between) or users[0].op_type != "Conv":
            continue
        own = users[0].attributes["pads"].value
        both = [a + b for a, b in zip(own, (*pads[2:4], *pads[6:8]), strict=True)]
        users[0].attributes["pads"] = onnx_ir.AttrInt64s("pads", both)
        for value in between:
            value.shape = None
        onnx_ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
        model.graph.remove(node, safe=True)
    RemoveUnusedNodesPass()(model)


def onnx_function(file: Path, threads: int | None = None) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an ONNX file on the CPU with ``threads`` threads (None: torch's number)."""
    onnxruntime: Any = require("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def compute(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.detach().cpu().numpy()})[0])

    return compute


def runnable(model: nn.Module, images: Tensor, runtime: str, *, threads: int | None = None) -> Callable[[Tensor], Any]:
    """Return ``model`` as a function of a batch shaped like ``images``, in ``runtime``; the model is not changed.

    Raises:
        RunFailed: the runtime cannot take this network.
    """
    check_runtime(runtime)
    if runtime == "torch":
        return copied(model).eval()
    if runtime == "compile":
        import torch._inductor.config as inductor

        fast = torch.compile(copied(model).eval(), dynamic=False)

        def frozen(x: Tensor) -> Any:
            with inductor.patch(freezing=True), torch.no_grad():
                return fast(x)

        try:
            frozen(images)
        except Exception as error:
            raise RunFailed(
                "torch.compile cannot take this network",
                argument="compile",
                given=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}",
            ) from error
        return frozen
    with tempfile.TemporaryDirectory() as folder:
        example = images if len(images) > 1 else images.expand(2, *images.shape[1:]).contiguous()
        return onnx_function(write_onnx(model, example, Path(folder) / "model.onnx"), threads)


def differences(model: nn.Module, compute: Callable[[Tensor], Tensor], images: Tensor) -> dict[int, float]:
    """Return max |compute - model| / max |model| by batch size of `CHECKED`; ``images`` holds the largest at least."""
    found = {}
    with evaluating(model), torch.no_grad():
        for count in CHECKED:
            wanted, got = joined_output(model(images[:count])), compute(images[:count])
            found[count] = float((got - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-12)
    return found


def note_rounding(model: nn.Module, made_of: nn.Module, images: Tensor) -> None:
    """Write into the history of an int8 ``model`` how far its answers are from those of ``made_of``.

    On ``images`` [B, C, H, W], B at least the largest of `CHECKED`, and on `noise`: codes fit noise less well.
    """
    if is_int8(model):
        origin, both = copied(made_of).cpu(), (images.cpu(), noise(images.shape[1:]))
        own = max(value for given in both for value in differences(origin, model, given).values())
        getattr(model, HISTORY)[-1]["rounding"] = own


def noise(shape: Sequence[int], seed: int = 0) -> Tensor:
    """Return images [B, *shape] of normal noise, as many as `differences` takes, for a network without data."""
    return torch.randn(max(CHECKED), *shape, generator=torch.Generator().manual_seed(seed))


def is_int8(model: nn.Module) -> bool:
    """Return whether a part of ``model`` is an int8 graph."""
    return any(isinstance(module, Int8Model) for module in model.modules())


def tolerance(model: nn.Module) -> float:
    """Return the difference another runtime may show: float32 rounding, or what the codes of an int8 graph cost.

    A runtime that multiplies integers rounds a value that lies between two codes another way now and then, one step of
    a layer's 255; what follows carries it on. Two roundings of one network are each as far from it as the graph is
    (`note_rounding`; kept in the history): their difference may be twice that, at least 0.05, never half of the largest
    logit.
    """
    own = max((entry.get("rounding", 0.0) for entry in getattr(model, HISTORY, [])), default=0.0)
    return max(0.05, min(2 * own, 0.5)) if is_int8(model) else 1e-4
