"""The report of ``convsmith explain``: a summary, the removal curve, and a chapter for each image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convsmith.errors import InvalidArgument
from convsmith.interpretation import (
    Contrast,
    Routes,
    apply_routes,
    heat_map,
    overlay,
    removal_curve,
    runner_up_contrast,
)
from convsmith.report import Figure, InlineImage, Section, Table
from convsmith.report.figures import SIDE, Series, lines, photo, png, strips

FRACTIONS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
#: share of open channels above which the search has found no route
ALL = 0.95


@dataclass(frozen=True)
class Explained:
    """The images of one run: normalised [B, C, H, W], names, labels (-1 unknown).

    ``pixels`` [n, C, h, w] in [0, 1] are what the network sees of the images with a chapter, larger where the file has
    more to show.
    """

    images: Tensor
    pixels: Tensor
    names: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]


def write(
    folder: Path,
    model: nn.Module,
    found: Explained,
    routes: Routes,
    *,
    neighbours: tuple[Tensor, Tensor, Tensor] | None,
    show: int,
    seed: int,
) -> dict[str, Any]:
    """Write the sections into a run folder and return the numbers for its top."""
    shown = min(show, len(routes))
    if shown:
        some, images = routes[:shown], found.images[:shown]
        maps, contrast = maps_of(model, images, some), runner_up_contrast(model, images, some)
        probabilities = apply_routes(model, images, {}).softmax(1).cpu()
        for row in range(shown):
            near = None if neighbours is None else tuple(part[row] for part in neighbours)
            heat = None if maps is None else maps[row]
            made = chapter(found, some, row, heat, contrast, probabilities[row], near)
            made.save(folder, f"41-image-{row:03d}")
    removal(model, found.images, found.labels, routes, seed).save(folder, "42-removal")
    return {
        "images": len(routes),
        "critical nodes, %": round(100 * float(routes.sparsity().mean()), 2),
        "searches converged, %": round(100 * float(routes.converged.double().mean()), 2),
        "predictions kept, %": round(100 * float(routes.kept.double().mean()), 2),
        "routes through every layer, %": round(100 * float(routes.flags.open.all(1).double().mean()), 2),
        "nodes": routes.total,
        "layers": len(routes.layers),
    }


def maps_of(model: nn.Module, images: Tensor, routes: Routes) -> Tensor | None:
    """Return the heat maps [B, H, W], or None where no layer holds a map (a transformer's layers hold tokens)."""
    try:
        return heat_map(model, images, routes).cpu()
    except InvalidArgument:
        return None


def removal(model: nn.Module, images: Tensor, labels: Tensor, routes: Routes, seed: int) -> Section:
    """Measure what is left without the critical nodes; the truth is the label, or the full network's prediction."""
    known = bool((labels >= 0).all())
    truth = labels if known else routes.prediction.cpu()
    curves, rows = {}, []
    for order, name in (("critical", "most critical"), ("random", "random"), ("least", "least critical")):
        curve = removal_curve(model, images, truth, routes, FRACTIONS, order=order, seed=seed)
        parts = (curve.fractions, curve.accuracy, curve.low, curve.high)
        curves[name] = Series(*([100 * value for value in part] for part in parts))
        rows.append([name, *(round(100 * a, 1) for a in curve.accuracy)])
    ylabel = "accuracy, %" if known else "same prediction, %"
    text = (
        f"Nodes switched off image by image on {len(images)} images, highest gate first, beside the same number at "
        "random and lowest gate first. Bands are 95 % Wilson intervals over images."
    )
    columns = ["nodes removed", *(f"{100 * f:g} %" for f in FRACTIONS)]
    svg = lines(curves, xlabel="nodes removed, %", ylabel=ylabel)
    alt = "Three falling curves: most critical nodes first, random, least critical first."
    figure = Figure(svg, f"{ylabel} by share of removed nodes.", alt)
    return Section("Without the critical nodes", [text], [Table(columns, rows, f"{ylabel} after removal.")], [figure])


def chapter(
    found: Explained,
    routes: Routes,
    row: int,
    heat: Tensor | None,
    contrast: Contrast,
    probabilities: Tensor,
    neighbours: tuple[Any, ...] | None,
) -> Section:
    """Return one image's chapter: photograph, overlay, the answer in words, strips of gates; tables are folded."""

    def named(label: int) -> str:
        return found.classes[label] if found.classes else f"class {label}"

    def short(label: int) -> str:
        return named(label).split(",")[0]

    top = probabilities.topk(min(5, len(probabilities)))
    classes = [[named(int(k)), round(float(p), 4)] for p, k in zip(top.values, top.indices, strict=True)]
    gates = {name: g[row].cpu().tolist() for name, g in routes.gates.items()}
    layers = [[name, len(values), sum(v > 0 for v in values), round(max(values), 2)] for name, values in gates.items()]
    channels = zip(contrast.layer[row], contrast.channel[row], contrast.effect[row].tolist(), strict=True)
    deciding = [[layer, int(channel), round(effect, 4)] for layer, channel, effect in channels if effect != 0]
    prediction, second = short(int(routes.prediction[row])), short(int(routes.runner_up[row]))
    pixels, name = _large(found.pixels[row].cpu().float()), found.names[row]
    plain = photo(pixels.numpy())
    pictures = [InlineImage(plain, prediction, f"{name}, as the network sees it", SIDE, pixelated=False)]
    if heat is not None:
        warm = f"warm places speak for {prediction}" if float(heat.max()) > 0 else f"no place speaks for {prediction}"
        under = photo(overlay(pixels[None], heat[None])[0].numpy())
        pictures.append(InlineImage(under, warm, f"{name} under its heat map", SIDE, pixelated=False))
    if neighbours is not None:
        for near_pixels, near, alike in zip(*neighbours, strict=True):
            shown = named(int(near)) if int(near) >= 0 else "unlabelled"
            if float(alike) > 0:  # a route without channels is near nothing
                caption = f"training image of {shown}; cosine of the two routes {float(alike):.2f}"
                pictures.append(InlineImage(png(near_pixels.numpy()), caption, "training image with a near route"))
    tables = [
        Table(["class", "probability"], classes, "Top classes of the full network.", folded=True),
        Table(["layer", "nodes", "critical", "largest gate"], layers, "The route by layer.", folded=True),
    ]
    if deciding:
        weighing = (
            f"Channels of the route that weigh most between {prediction} and {second} (margin "
            f"{float(contrast.margin[row]):.2f}); a positive effect speaks for {prediction}."
        )
        tables.append(Table(["layer", "channel", "effect"], deciding, weighing, folded=True))
    figures = []
    if any(max(values) > 0 for values in gates.values()):
        svg = strips(gates, xlabel="channels of the layer")
        alt = "One strip per layer, dark where a gate is open."
        figures.append(Figure(svg, "Gates by layer; white is closed.", alt))
    then = f"{second}, {_percent(float(probabilities[routes.runner_up[row]]))}"
    truth = "" if int(found.labels[row]) < 0 else f" Its label is {named(int(found.labels[row]))}."
    return Section(name, _words(routes, row, prediction, then, truth), tables, figures, pictures)


def _words(routes: Routes, row: int, first: str, second: str, truth: str) -> list[str]:
    """Return what one route says, in plain words; then its numbers."""
    count = f"{round(float(routes.sparsity()[row]) * routes.total):,} of its {routes.total:,} channels"
    answer = f"The network says {first}, {_percent(float(routes.confidence[row]))} sure; next comes {second}.{truth}"
    if not bool(routes.flags.open[row].any()):
        left = f"the {count} that are left" if float(routes.sparsity()[row]) else "the network with every channel shut"
        told = (
            f"No route through all layers was found: {left} would say {first} whatever the image shows, "
            "from constants inside the network. They explain nothing about this image."
        )
    elif bool(routes.kept[row]) and float(routes.sparsity()[row]) <= ALL:
        told = f"{count} are enough for that: with all others switched off it says the same."
    else:
        told = (
            f"No part of its {routes.total:,} channels was found in {int(routes.passes[row])} passes that says the "
            "same without the others."
        )
    numbers = (
        f"{float(routes.sparsity()[row]):.1%} are critical; divergence {float(routes.divergence[row]):.3f} "
        f"nats; each gate weighs {float(routes.gamma[row]):.2g}; {int(routes.passes[row])} passes."
    )
    notes = [f"{note[0].upper()}{note[1:]}." for note in routes.messages(row)]
    return [f"{answer} {told}", " ".join([numbers, *notes])]


def _percent(share: float) -> str:
    """Return a probability in percent that claims neither 0 nor 100."""
    return "under 1 %" if share < 0.01 else "over 99 %" if share > 0.99 else f"{share:.0%}"


def _large(pixels: Tensor) -> Tensor:
    """Return a small image [C, H, W] with every pixel as a square, so that heat can be smooth on it."""
    factor = max(1, -(-SIDE // max(pixels.shape[-2:])))
    return pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
