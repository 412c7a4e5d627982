"""Find the critical routing paths of images: whole batches at once, memory bounded by the batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import checked, integer, module, spelled, tensor
from convsmith.errors import InvalidArgument, RunFailed
from convsmith.inspection.modes import check_evaluation, unwrap
from convsmith.inspection.outputs import class_scores
from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.pathway import pathway_norms
from convsmith.interpretation.routes import RouteFlags, Routes
from convsmith.interpretation.settings import RouteSettings, settings_with
from convsmith.interpretation.sites import SitePlan, SiteRule, plan_sites
from convsmith.interpretation.solvers.converged import solve_converged
from convsmith.interpretation.solvers.paper import solve_paper
from convsmith.interpretation.solvers.problem import Solution

Progress = Callable[[int, int, str], None]


@checked
def find_routes(
    model: nn.Module,
    images: Tensor,
    settings: RouteSettings | None = None,
    *,
    sites: str | SiteRule = "auto",
    layers: Sequence[str] | None = None,
    batch_size: int | None = None,
    labels: Tensor | None = None,
    index: Tensor | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Routes:
    """Find, for every image, the channels that carry the network's prediction (critical data routing path).

    Non-negative gates multiply the channels of the gated layers; they minimise the cross-entropy to the full
    network's output plus ``gamma`` times their sum, and the prediction must stay. Channels whose gate stays positive
    are the critical nodes. Wang et al., CVPR 2018. The model is not changed; nothing random is drawn from torch's
    global state; the result does not depend on how images are batched (to rounding).

    Args:
        model: any classifier in evaluation mode with logits [B, K]; wrappers are looked through.
        images: [B, C, H, W] as the model takes them (normalised).
        settings: how to search, default `RouteSettings()`.
        sites: ``"auto"``, ``"conv"``, ``"block"``, ``"activation"`` or a rule of your own, see `plan_sites`.
        layers: names (or patterns) of the layers to gate.
        batch_size: images solved at once (default 32, on CUDA 128); memory grows with it, not with B.
        labels: [B] int64, stored in the result.
        index: [B] int64 image numbers, stored in the result; versions of one image share a number.
        progress: called with images done, images in all, a note.
        **changes: fields of `RouteSettings` that differ from ``settings``.

    Raises:
        InvalidArgument: a bad setting, a model in training mode, no such site, images that are not finite.

    Examples:
        >>> routes = find_routes(model, images, gamma=0.05)
        >>> share_of_channels, same_prediction = routes.sparsity(), routes.kept
    """
    settings = settings_with(settings, **changes)
    model, images = prepare(model, images)
    plan = plan_sites(model, images, sites, layers)
    return solve(model, images, plan, settings, batch_size, progress, labels=labels, index=index)


def solve(
    model: nn.Module,
    images: Tensor,
    plan: SitePlan,
    settings: RouteSettings,
    batch_size: int | None = None,
    progress: Progress | None = None,
    *,
    gammas: Tensor | None = None,
    labels: Tensor | None = None,
    index: Tensor | None = None,
    first: int = 0,
) -> Routes:
    """Find routes for a plan made before; ``gammas`` [B] overrides ``settings.gamma`` image by image.

    ``first``: place of the first image among all of them, where this is a part (for the streams of uniform starts).
    """
    count = len(images)
    labels = _column(labels, count, -1, "labels")
    index = _column(index, count, None, "index")
    gammas = torch.full((count,), float(settings.gamma), dtype=torch.float64) if gammas is None else gammas.cpu()
    parts = []
    for rows in row_slices(images, batch_size):
        gamma = gammas[rows]
        begin = _start(settings, len(gamma), plan.total, first + rows.start)
        parts.append(_solve_batch(model, images[rows], plan, settings, gamma, begin, labels[rows], index[rows]))
        if progress is not None:
            progress(rows.stop, count, "routes")
    return Routes.concatenate(parts)


def rows_at_once(images: Tensor, batch_size: int | None) -> int:
    """Return the batch size: as asked, else 32, on CUDA 128."""
    if batch_size is not None:
        integer("batch_size", batch_size, least=1)
    return batch_size or (128 if images.is_cuda else 32)


def row_slices(images: Tensor, batch_size: int | None) -> Iterator[slice]:
    """Give the rows of one batch after the other."""
    size = rows_at_once(images, batch_size)
    return (slice(first, min(first + size, len(images))) for first in range(0, len(images), size))


def prepare(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """Unwrap and check the model, check the images and bring them to the model's device (and dtype if float64)."""
    model = unwrap(module("model", model))
    check_evaluation(model)
    tensor("images", images, rank=(2, 3, 4, 5), what="floating-point numbers [B, C, H, W]")
    if len(images) == 0:
        raise InvalidArgument("there is no image", argument="images", given=tuple(images.shape))
    if not bool(images.isfinite().all()):
        raise InvalidArgument("images must be finite", argument="images", given="NaN or infinite pixels")
    parameter = next(iter(model.parameters()), None)
    if parameter is not None:
        images = images.to(parameter.device, parameter.dtype if parameter.is_floating_point() else None)
    return model, images


def describe(plan: SitePlan, settings: RouteSettings, images: Tensor) -> dict[str, Any]:
    """Return the settings as JSON values with the defaults filled in, and the size (C, H, W) of the images."""
    filled = {"steps": settings.most_steps, "upper": _upper(plan, settings), "sites": plan.kind}
    return {**asdict(settings), **filled, "image_size": [*images.shape[1:]]}


def _upper(plan: SitePlan, settings: RouteSettings) -> float:
    return settings.upper or (100.0 if plan.kind == "block" else 5.0)


def _column(values: Tensor | None, count: int, fill: int | None, name: str) -> Tensor:
    if values is None:
        return torch.arange(count) if fill is None else torch.full((count,), fill)
    whole = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    if values.shape != (count,) or not whole:
        raise InvalidArgument("one whole number per image", argument=f"{name} [{count}]", given=spelled(values))
    return values.long()


def class_numbers(model: nn.Module, images: Tensor, values: Tensor, name: str = "labels") -> Tensor:
    """Return one class of the network for every image, [B] on the images' device; refuse numbers of no class."""
    # a copy: what inference mode made cannot be saved for a gradient
    found = _column(values, len(images), None, name).to(images.device).clone()
    with torch.no_grad():
        classes = class_scores(model(images[:1])).shape[1]
    if not bool(((found >= 0) & (found < classes)).all()):
        given = f"{int(found.min())} to {int(found.max())} for {classes} classes"
        raise InvalidArgument("a label is the number of a class of the network", argument=name, given=given)
    return found


def _solve_batch(
    model: nn.Module,
    images: Tensor,
    plan: SitePlan,
    settings: RouteSettings,
    gammas: Tensor,
    start: Tensor,
    labels: Tensor,
    index: Tensor,
) -> Routes:
    upper, rows = _upper(plan, settings), len(images)
    shown = torch.cat([images, blanks(images)]) if settings.open_layers else images
    precision, channels_last = settings.precision, settings.channels_last
    with GatedNetwork(model, plan, shown, precision=precision, channels_last=channels_last) as network:
        logits, nothing = look(network)
        full, silent = logits[:rows], nothing[:rows]
        probabilities = full.softmax(1)
        gammas, start = gammas.to(full), start.to(full)
        weight = gammas / (plan.total if settings.gamma_per == "mean" else 1)
        if settings.mode == "paper":
            solution = solve_paper(network, probabilities, weight, start, steps=settings.most_steps, upper=upper)
        else:
            solution = solve_converged(
                network,
                probabilities,
                weight,
                start,
                passes=settings.most_steps,
                upper=upper,
                tolerance=settings.tolerance,
                blank=logits[rows:] if settings.open_layers else None,
            )
            network.restore()
            solution = close_silent(network, solution, weight)
            network.select(torch.arange(rows, device=full.device))
            if settings.open_layers:
                solution = replace(solution, passes=2 * solution.passes)
        return collect(network, full, silent, solution, describe(plan, settings, images), labels, index, gammas)


def blanks(images: Tensor) -> Tensor:
    """Return for every image [B, C, ...] one of its mean colour, the same everywhere."""
    places = tuple(range(2, images.dim())) or (1,)
    return images.mean(places, keepdim=True).expand_as(images)


def _start(settings: RouteSettings, rows: int, total: int, first: int) -> Tensor:
    if settings.init == "ones":
        return torch.ones(rows, total)
    streams = (torch.Generator().manual_seed(settings.seed * 1_000_003 + first + row) for row in range(rows))
    return torch.stack([torch.rand(total, generator=stream) for stream in streams])


def close_silent(network: GatedNetwork, solution: Solution, weight: Tensor) -> Solution:
    """Close gates on channels that pass nothing on: the output stays exactly, the objective falls by their weight."""
    copies = len(network.images) // len(solution.gates)  # a channel may be silent on the image and not on its blank
    _, silent = look(network, solution.gates.repeat(copies, 1))
    closed = torch.where(silent.unflatten(0, (copies, -1)).all(0), 0.0, solution.gates)
    return replace(solution, gates=closed, objective=solution.objective - weight * (solution.gates - closed).sum(1))


def look(network: GatedNetwork, gates: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return logits [B, K] (of the full network if no gates) and which nodes pass nothing on, bool [B, total]."""
    with torch.no_grad():
        logits = network.logits(gates, watch=True)
        if not bool(logits.isfinite().all()):
            raise RunFailed("the network's output for these images is not finite", given="NaN or infinite logits")
        silent = [maps.amax(2) <= 0 if site.rectified else maps.abs().amax(2) == 0 for site, maps in network.watched()]
        network.outputs.clear()
    return logits, torch.cat(silent, dim=1)


def collect(
    network: GatedNetwork,
    full: Tensor,
    silent: Tensor,
    solution: Solution,
    settings: dict[str, Any],
    labels: Tensor,
    index: Tensor,
    gammas: Tensor,
    applied: Tensor | None = None,
) -> Routes:
    """Wrap a solution into `Routes`; a pass of its own checks the gates (or ``applied`` [B, total] in their place)."""
    plan, values = network.plan, solution.gates
    critical = values > 0
    closed = torch.stack([~part.any(1) for part in critical.split(plan.widths, dim=1)], dim=1)
    if applied is None:
        _, whole = pathway_norms(network, torch.ones_like(values), full.argmax(1), layers=False)
        gated, norms = pathway_norms(network, values, full.argmax(1))
        share = norms[:, 1:] / whole.clamp(min=torch.finfo(whole.dtype).tiny)
    else:
        share = (~closed).to(full)
        with torch.no_grad():
            gated = network.logits(applied)
    log_p, log_q = full.log_softmax(1), gated.log_softmax(1)
    top = full.topk(2, dim=1).indices
    names = tuple(site.name for site in plan.sites)
    dead = (critical & silent).sum(1) / critical.sum(1).clamp(min=1)
    gates = {name: part.contiguous() for name, part in zip(names, values.split(plan.widths, dim=1), strict=True)}
    return Routes(
        gates=gates,
        prediction=top[:, 0],
        confidence=log_p.exp().gather(1, top[:, :1])[:, 0],
        runner_up=top[:, 1],
        kept=gated.argmax(1) == full.argmax(1),
        divergence=(log_p.exp() * (log_p - log_q)).sum(1).clamp(min=0),
        objective=solution.objective,
        passes=solution.passes,
        converged=solution.converged,
        gamma=gammas,
        flags=RouteFlags(closed, share, dead, names),
        index=index.to(full.device),
        labels=labels.to(full.device),
        settings=settings,
    )
