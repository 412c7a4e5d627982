"""One verb for every method: `compress`, its plan, and `restore_structure` from the JSON a compressed model carries."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import checked, of_type, one_of, tensor
from convsmith.compression.methods.method import HISTORY, METHODS, Method
from convsmith.compression.planning.agreement import WARN_BELOW, agreement, is_scores, predicted_agreement
from convsmith.compression.planning.budget import budget_of
from convsmith.compression.planning.latency import plan_for_latency
from convsmith.compression.planning.plan import WHOLE, Budget, Plan, named_reasons
from convsmith.compression.planning.reconstruct import BATCH, FEWEST
from convsmith.compression.planning.reconstruct import reconstruct as solve
from convsmith.compression.planning.subject import Progress, Subject
from convsmith.compression.runtimes import check_runtime
from convsmith.errors import InvalidArgument, close_matches, refusing
from convsmith.inspection.feature_maps import input_shape
from convsmith.inspection.layers import LayerInventory
from convsmith.inspection.modes import copied, evaluating, unwrap
from convsmith.inspection.outputs import main_output
from convsmith.inspection.trace import trace_layers
from convsmith.registry import check_settings, setting_types

#: one of so many example images is left out of a reconstruction and checks it
HELD_OUT = 8
_UNREADABLE = "settings are those that the method writes for layers of this network"
#: square sizes tried when no example is given and the size that the model names fails
_SIZES = (32, 64, 224, 28, 96, 128, 8)


def available() -> list[str]:
    """Return the names of all compression methods.

    Examples:
        >>> "low-rank" in available()
        True
    """
    return METHODS.names()


@checked
def compress(
    model: nn.Module,
    method: str,
    *,
    example: Tensor | None = None,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    keep_latency: float | None = None,
    runtime: str = "torch",
    plan: Plan | None = None,
    reconstruct: bool | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> nn.Module:
    """Return a compressed copy of ``model``; the input model is not changed.

    Args:
        model: any network that takes one image tensor; DataParallel and compiled wrappers are taken off.
        method: a name of `available`, or several joined by commas, applied from left to right.
        example: images [B, C, H, W] as the network expects them. They give the shapes and, if they are real images,
            calibrate what needs calibration. Without one, noise of the model's own input size gives the shapes.
        keep_macs: the share of operations to keep, in (0, 1]. At most one of the three budgets; in a chain the first
            method that can obey it does.
        keep_params: the share of parameters to keep.
        keep_latency: the share of the time to keep, measured in ``runtime``.
        runtime: ``"torch"``, ``"compile"`` (frozen weights) or ``"onnxruntime"``.
        plan: a `Plan` (edited or not) to carry out instead of making one.
        reconstruct: re-solve the weights of low rank, pruning and interleaving on the example images, layer by layer,
            without labels (`convsmith.compression.planning.reconstruct`); by default where 64 or more are given. Every
            eighth image is left out and tells how often the result agrees with the original.
        progress: called with (done, total, note).
        settings: the method's own (``METHODS[name]`` documents them); in a chain each goes to the methods that know it.

    Returns:
        An ordinary module in the mode (training or evaluation) of ``model``. `compression_history` of it says what was
        done, what was left alone and why, and `restore_structure` repeats it.

    Raises:
        InvalidArgument: not a module, unknown method or setting, bad or impossible budget, nothing to compress.
        MissingExtra: an optional package the method needs is not installed.

    Examples:
        >>> smaller = compress(model, "low-rank", example=images, keep_macs=0.5)
    """
    shares = {"keep_macs": keep_macs, "keep_params": keep_params, "keep_latency": keep_latency}
    methods, budget, obeying = _request(method, settings, shares, runtime, reconstruct)
    if plan is not None and (budget is not None or len(methods) > 1):
        raise InvalidArgument("a plan replaces the budget and belongs to one method", given=f"method {method!r}")
    if plan is not None and plan.method != methods[0][0]:
        raise InvalidArgument("the plan was made for another method", argument=methods[0][0], given=plan.method)
    model = unwrap(model)
    history = compression_history(model)
    result = copied(model)
    with torch.random.fork_rng(devices=[]):
        for i, (name, chosen) in enumerate(methods):
            if history and not METHODS[history[-1]["method"]].chains:
                raise InvalidArgument(
                    f"nothing can follow {history[-1]['method']}: it leaves a fixed graph without layers",
                    argument=name,
                    hint="put it last in the chain",
                )
            subject = _subject(result, name, chosen, example, reconstruct, progress)
            made = plan or _plan(name, chosen, subject, budget if i == obeying else None, runtime)
            _check(made, subject.seen)
            before = copied(result) if subject.resolved else result
            broken = (KeyError, TypeError, ZeroDivisionError) if plan else ()
            with refusing(_UNREADABLE, *broken, argument="plan"):
                applied = chosen.apply(subject, made)
            result = applied.model
            entry: dict[str, Any] = {
                "method": name,
                "settings": _json(chosen),
                "layers": copy.deepcopy(applied.layers),  # a plan may be edited again
                "skipped": dict(made.skipped),
                "notes": list(applied.notes),
            }
            if subject.resolved:
                shown = subject.seen.example
                held = torch.arange(len(shown)) % HELD_OUT == HELD_OUT - 1
                images, others = shown[~held], shown[held]
                solve(before, result, subject.seen, images, rows=applied.rows, progress=progress)
                found = agreement(model, result, others)
                entry["reconstructed"] = len(images)
                entry["agreement"] = found
                if found is not None and found < WARN_BELOW:
                    entry["notes"].append(
                        f"only {found:.0%} of {len(others)} images left out get the original's answer: keep more, "
                        "give more images, or fine-tune (no labels are needed with distill=1)"
                    )
            history.append(entry)
    setattr(result, HISTORY, history)
    return result


@checked
def plan_compression(
    model: nn.Module,
    method: str,
    *,
    example: Tensor | None = None,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    keep_latency: float | None = None,
    runtime: str = "torch",
    reconstruct: bool | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Plan:
    """Return what `compress` would do with the same arguments, to print, save, edit and pass back as ``plan``.

    Examples:
        >>> plan = plan_compression(model, "low-rank", example=images, keep_macs=0.5)
    """
    shares = {"keep_macs": keep_macs, "keep_params": keep_params, "keep_latency": keep_latency}
    methods, budget, _ = _request(method, settings, shares, runtime, reconstruct)
    if len(methods) > 1:
        raise InvalidArgument("a plan belongs to one method", given=method, hint="plan the first one, then the next")
    name, chosen = methods[0]
    with torch.random.fork_rng(devices=[]):
        subject = _subject(copied(unwrap(model)), name, chosen, example, reconstruct, progress)
        return _plan(name, chosen, subject, budget, runtime)


@checked
def restore_structure(model: nn.Module, history: Sequence[dict[str, Any]]) -> nn.Module:
    """Return a copy of the uncompressed ``model`` with the structure that ``history`` describes.

    Weights are whatever the constructors give: load them afterwards (`convsmith.compression.load_packed_state`).

    Examples:
        >>> smaller = compress(model, "low-rank", example=images, keep_macs=0.5)
        >>> same_structure = restore_structure(model, compression_history(smaller))
    """
    result = copied(unwrap(model))
    with torch.random.fork_rng(devices=[]), refusing(_UNREADABLE, AttributeError, KeyError, TypeError):
        for recipe in history:
            result = METHODS[recipe["method"]].restore_structure(result, recipe["layers"])
    setattr(result, HISTORY, copy.deepcopy(list(history)))
    return result


@checked
def compression_history(model: nn.Module) -> list[dict[str, Any]]:
    """Return the JSON history of everything that was done to ``model``, in order (empty: nothing was).

    Examples:
        >>> compression_history(model)
        []
    """
    return copy.deepcopy(getattr(unwrap(model), HISTORY, []))


def look(model: nn.Module, example: Tensor | None) -> LayerInventory:
    """Trace ``model`` on ``example``, or on noise of the model's own input size if there is none."""
    parameter = next((p for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()), None)
    if parameter is None:
        raise InvalidArgument("there is nothing to compress in a network without weights", given=type(model).__name__)
    for key, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise InvalidArgument("weights are finite", argument="model", given=f"NaN or infinity in {key}")
    if example is not None:
        tensor("example", example, rank=4, what="images [B, C, H, W]")
        if len(example) == 0 or not bool(example.isfinite().all()):
            given = "NaN or infinite pixels" if len(example) else "no image"
            raise InvalidArgument("an example is a non-empty batch of finite images", argument="example", given=given)
        return _trace(model, example.detach().to(parameter.device, parameter.dtype))
    failure: InvalidArgument | None = None
    generator = torch.Generator().manual_seed(0)
    configured = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    shapes = [input_shape(model)] if configured else []
    for shape in [*shapes, *(input_shape(model, (side, side)) for side in _SIZES)]:
        noise = torch.randn(2, *shape, generator=generator).to(parameter.device, parameter.dtype)
        try:
            return _trace(model, noise, real=False)
        except InvalidArgument as error:
            failure = failure or error
    raise InvalidArgument(
        "the input shape of this network could not be found", given=failure, hint="pass example=, one batch of images"
    )


def _trace(model: nn.Module, example: Tensor, *, real: bool = True) -> LayerInventory:
    rule, hint = "the network must run on the example", "pass example=, one batch of images as the network expects them"
    with refusing(rule, Exception, argument=f"example {tuple(example.shape)}", hint=hint):
        first = trace_layers(model, example[:BATCH], real=real)
        if len(example) <= BATCH or not isinstance(first.output, Tensor):
            return first if len(example) <= BATCH else trace_layers(model, example, real=real)
        with evaluating(model), torch.no_grad():
            rest = [model(part) for part in example[BATCH:].split(BATCH)]
        return dataclasses.replace(first, example=example, output=torch.cat([first.output, *rest]))


def _request(
    method: str,
    settings: dict[str, Any],
    shares: dict[str, float | None],
    runtime: str,
    reconstruct: bool | None,
) -> tuple[list[tuple[str, Method]], Budget | None, int]:
    """Check what is asked; return the methods by name, the budget, and the place of the method that obeys it."""
    if not method.strip(", "):
        raise InvalidArgument("a method is a name", given=repr(method), hint=f"known: {', '.join(available())}")
    names = [name.strip() for name in method.split(",") if name.strip()]
    types = {name: setting_types(METHODS[name]) for name in names}
    check_settings(method, settings, {*shares, "example"}.union(*types.values()), argument=method)
    methods = [
        (name, METHODS[name](**{k: of_type(k, settings[k], types[name][k]) for k in settings if k in types[name]}))
        for name in names
    ]
    if reconstruct and not any(chosen.reconstructs for _, chosen in methods):
        able = ", ".join(entry.name for entry in METHODS if entry.value.reconstructs)
        rule = f"{','.join(names)} has no weights to re-solve"
        raise InvalidArgument(rule, argument="reconstruct", hint=f"methods: {able}")
    budget, obeying = budget_of(names, **shares)
    check_runtime(runtime)
    return methods, budget, obeying


def _subject(
    model: nn.Module,
    name: str,
    method: Method,
    example: Tensor | None,
    reconstruct: bool | None,
    progress: Progress | None,
) -> Subject:
    """Look at a network that may be changed, and decide whether its weights are re-solved."""
    if method.calibrates and example is None:
        rule, hint = f"{name} needs real images to calibrate on", "pass a batch of 32 or more"
        raise InvalidArgument(rule, argument="example", given=None, hint=hint)
    seen = look(model, example)
    if reconstruct and (not seen.real or len(seen.example) < HELD_OUT):
        raise InvalidArgument(
            "a reconstruction needs real images", argument="reconstruct", given=seen.rows, hint="pass 64 or more"
        )
    wanted = seen.real and len(seen.example) >= FEWEST if reconstruct is None else reconstruct
    return Subject(model, seen, progress, resolved=wanted and method.reconstructs)


def _plan(name: str, method: Method, subject: Subject, budget: Budget | None, runtime: str) -> Plan:
    for layer in method.skip:
        one_of("skip", layer, list(subject.seen.by_name()))
    if budget is not None and budget.kind == "latency":
        made = plan_for_latency(subject, method, budget, runtime=runtime)
    else:
        made = method.plan(subject, budget)
    made, seen = dataclasses.replace(made, method=name), subject.seen  # a method may be another's under a new name
    scores, known = main_output(seen.output), [c.sensitivity for c in made.choices if c.sensitivity is not None]
    if not (seen.real and known and is_scores(scores)):
        return made
    return dataclasses.replace(made, agreement=predicted_agreement(scores, sum(known)))


def _check(plan: Plan, seen: LayerInventory) -> None:
    """Refuse plans that name unknown or skipped layers, or do nothing without being asked to."""
    known = {layer.name for layer in seen.layers}
    for name in plan.settings():
        if name == WHOLE:
            continue
        if name not in known:
            raise InvalidArgument(
                "the plan names a layer this network lacks", given=name, hint=close_matches(name, known)
            )
        if name in seen.skipped():
            raise InvalidArgument(f"{name} cannot be compressed: {seen.skipped()[name]}", argument="plan", given=name)
    if not plan.settings() and not (plan.budget is not None and plan.budget.keep == 1) and not plan.choices:
        reasons = named_reasons(plan.skipped) or "a network without layers it knows"
        raise InvalidArgument(f"{plan.method} found nothing to compress", given=reasons)


def _json(method: Method) -> dict[str, Any]:
    """Return the settings that are not at their defaults; what JSON cannot hold is named by its type."""
    out: dict[str, Any] = {}
    for item in dataclasses.fields(method):  # type: ignore[arg-type]  # every method is a dataclass
        value = getattr(method, item.name)
        if value == item.default:
            continue
        plain = isinstance(value, str | int | float | bool | type(None))
        out[item.name] = value if plain else list(value) if isinstance(value, tuple) else f"<{type(value).__name__}>"
    return out
