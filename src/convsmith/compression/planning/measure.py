"""Honest numbers of a compressed network beside the original's, taken in the same run.

Bytes are those of the file that `packed_state` writes, plus the JSON recipe. Latency is timed call by call in turns
with the original, eager and compiled, at a pinned number of threads. Nothing is estimated.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from convsmith.arguments import checked, integer, number, tensor
from convsmith.compression.convert import compression_history
from convsmith.compression.cost import cost
from convsmith.compression.methods.int8 import Int8Model
from convsmith.compression.methods.method import output_error
from convsmith.compression.methods.packing import load_packed_state, packed_state
from convsmith.compression.planning.latency import time_side_by_side
from convsmith.compression.planning.subject import Progress
from convsmith.compression.runtimes import runnable
from convsmith.errors import InvalidArgument, RunFailed
from convsmith.inspection.layers import KINDS
from convsmith.inspection.modes import copied, evaluating, watching
from convsmith.inspection.outputs import joined_output


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call: median and quartiles; ``ratio``: median of the calls' ratios to the original's."""

    median: float
    low: float
    high: float
    ratio: float


@dataclass(frozen=True)
class Size:
    """What a network holds and does.

    ``params``: stored weights and biases as numbers (in whatever precision), ``nonzero`` of them, ``macs`` for one
    image, ``nonzero_macs`` with multiplications by stored zeros left out, ``bytes`` of the weights file, ``recipe`` of
    the JSON beside it.
    """

    params: int
    nonzero: int
    macs: int
    nonzero_macs: int
    bytes: int
    recipe: int


@checked
def size(model: nn.Module, input_size: Sequence[int]) -> Size:
    """Count and store ``model``; ``input_size`` is (C, H, W).

    Examples:
        >>> params = size(model, (3, 16, 16)).params
    """
    counted = cost(model, input_size)
    state = packed_state(model)
    stored = load_packed_state(copied(model), state)
    # an int8 graph holds its weights as buffers
    codes = [b for b in stored.buffers() if b.dtype == torch.int8] if isinstance(stored, Int8Model) else []
    holders = [*stored.parameters(), *codes]
    params = sum(t.numel() for t in holders)
    nonzero = sum(int(torch.count_nonzero(t)) for t in holders)
    saved = 0
    for name, layer in counted.by_layer.items():
        weight = getattr(stored.get_submodule(name), "weight", None)
        if layer.macs and isinstance(weight, Tensor) and weight.numel():
            saved += round(layer.macs * (1 - int(torch.count_nonzero(weight)) / weight.numel()))
    recipe = len(json.dumps(compression_history(model)))
    return Size(params, nonzero, counted.macs, counted.macs - saved, len(save(state)), recipe)


@contextlib.contextmanager
def pinned_threads(count: int | None) -> Iterator[int]:
    """Compute with ``count`` threads inside the block (None: as it is); gives the number in force."""
    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise InvalidArgument("at least one thread computes", argument="threads", given=count)
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@checked
def latencies(
    models: Mapping[str, nn.Module],
    images: Tensor,
    *,
    batches: Sequence[int] = (1, 32),
    compiled: bool = True,
    onnx: bool = False,
    threads: int | None = 1,
    seconds: float = 0.3,
    progress: Progress | None = None,
) -> dict[str, dict[str, Latency | str]]:
    """Time ``models`` against the first of them, in turns.

    Args:
        models: name to network; the first is the original.
        images: [B, C, H, W], repeated or cut to every batch size.
        batches: batch sizes.
        compiled: also time each network under ``torch.compile`` with frozen weights.
        onnx: also time each network in ONNX Runtime.
        threads: of torch, None for as many as it has now.
        seconds: per network and case.
        progress: called with (done, total, note).

    Returns:
        By network, by case (``"eager 1"``, ``"compiled 32"``, ``"onnxruntime 1"``): `Latency`, or why there is none. No
        network has one in a case in which the first has none.

    Examples:
        >>> both = {"original": model, "folded": fold_for_inference(model)}
        >>> times = latencies(both, images, batches=[1], compiled=False, seconds=0.01)
    """
    tensor("images", images, rank=4, what="images [B, C, H, W]")
    if not models or not len(images):
        given = f"{len(models)} networks, {len(images)} images"
        raise InvalidArgument("there is nothing to time", argument="models, images", given=given)
    for batch in batches:
        integer("batches", batch, least=1)
    number("seconds", seconds, least=0)
    found: dict[str, dict[str, Latency | str]] = {name: {} for name in models}
    kinds = ["eager", *["compiled"] * compiled, *["onnxruntime"] * onnx]
    cases = [(kind, batch) for batch in batches for kind in kinds]
    sessions = {name: _session(model, images, threads) for name, model in models.items()} if onnx else {}
    with pinned_threads(threads), contextlib.ExitStack() as modes:
        for model in models.values():
            modes.enter_context(evaluating(model))
        for done, (kind, batch) in enumerate(cases):
            if progress is not None:
                progress(done, len(cases), f"{kind}, batch {batch}")
            x = images[torch.arange(batch) % len(images)].contiguous()
            ready: dict[str, Any] = sessions if kind == "onnxruntime" else dict(models)
            if kind == "compiled":
                ready = dict(compiled_networks(models, x))
            first = next(iter(ready.values()))
            if isinstance(first, str):  # nothing to compare with
                alone = f"not timed without the original, which {first}"
                ready = {name: call if isinstance(call, str) else alone for name, call in ready.items()}
            for name, reason in ready.items():
                if isinstance(reason, str):
                    found[name][f"{kind} {batch}"] = reason
            calls = {name: call for name, call in ready.items() if not isinstance(call, str)}
            if calls:
                took = time_side_by_side(list(calls.values()), x, seconds=seconds)
                for name, row in zip(calls, took, strict=True):
                    found[name][f"{kind} {batch}"] = _latency(row, took[0])
    return found


def _session(model: nn.Module, images: Tensor, threads: int | None) -> Callable[[Tensor], Tensor] | str:
    try:
        return runnable(model, images[:2], "onnxruntime", threads=threads)
    except RunFailed as error:
        return f"did not go into ONNX: {error.given}"


def compiled_networks(models: Mapping[str, nn.Module], images: Tensor) -> dict[str, Callable[[Tensor], Tensor] | str]:
    """Compile every network for exactly these images, with frozen weights; a text instead of one says why it cannot.

    All results stay valid together until the next call, which forgets them: torch keeps one cache for all.
    """
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    torch.compiler.reset()
    found: dict[str, Callable[[Tensor], Tensor] | str] = {}
    # networks of one class share their code, and so one list of compiled versions: it must hold them all
    with inductor.patch(freezing=True), dynamo.patch(recompile_limit=len(models) + 8), torch.no_grad():
        for name, model in models.items():
            try:
                fast = torch.compile(copied(model), dynamic=False)
                fast(images)
                found[name] = fast
            except Exception as error:  # noqa: BLE001  (whatever the compiler raises is the answer to report)
                found[name] = f"did not compile: {type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
    return found


def _latency(row: list[float], base: list[float]) -> Latency:
    values = torch.tensor(row, dtype=torch.float64) * 1e3
    ratio = torch.tensor([a / b for a, b in zip(row, base, strict=True)], dtype=torch.float64).median()
    low, mid, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return Latency(mid, low, high, float(ratio))


@checked
def layer_errors(original: nn.Module, compressed: nn.Module, images: Tensor) -> dict[str, float | str]:
    """Return how far every compressed layer's output moved: `output_error` on the same images, by layer name.

    Both networks run whole, so a layer's error includes what came before it. A layer whose output changed its shape has
    a reason instead of a number; an int8 graph has no layers, and one entry says so.

    Examples:
        >>> errors = layer_errors(model, compress(model, "low-rank", example=images, keep_macs=0.5), images)
    """
    if isinstance(compressed, Int8Model):
        return {"(whole network)": "an int8 graph holds operators, not layers"}
    names = [n for n, m in original.named_modules() if isinstance(m, tuple(KINDS))]
    before, after = (_outputs(model, names, images) for model in (original, compressed))
    errors: dict[str, float | str] = {}
    for name in names:
        if name not in before or name not in after:
            continue
        a, b = before[name], after[name]
        same = a.shape == b.shape
        errors[name] = output_error(a, b) if same else f"output is {tuple(b.shape[1:])}, was {tuple(a.shape[1:])}"
    return errors


def _outputs(model: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    there = dict(model.named_modules())

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: found.__setitem__(name, joined_output(output))

    with watching(model, {name: keep(name) for name in names if name in there}):
        model(images)
    return found
