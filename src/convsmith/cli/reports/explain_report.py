"""The report of ``convsmith explain``: a summary, the removal curve, and a chapter for each image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convsmith.interpretation import Contrast, Routes
    from convsmith.report import Section

FRACTIONS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Explained:
    """The images of one run: normalised [B, C, H, W], pixels in [0, 1], names, labels (-1 unknown)."""

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
    from convsmith.interpretation import heat_map, runner_up_contrast

    removal(model, found.images, found.labels, routes, seed).save(folder, "41-removal")
    shown = min(show, len(routes))
    if shown:
        some, images = routes[:shown], found.images[:shown]
        maps, contrast = heat_map(model, images, some).cpu(), runner_up_contrast(model, images, some)
        probabilities = _probabilities(model, images)
        for row in range(shown):
            near = None if neighbours is None else tuple(part[row] for part in neighbours)
            chapter(found, routes, row, maps[row], contrast, probabilities[row], near).save(
                folder, f"42-image-{row:03d}"
            )
    return {
        "images": len(routes),
        "critical nodes, %": round(100 * float(routes.sparsity().mean()), 2),
        "searches converged, %": round(100 * float(routes.converged.double().mean()), 2),
        "predictions kept, %": round(100 * float(routes.kept.double().mean()), 2),
        "nodes": routes.total,
        "layers": len(routes.layers),
    }


def removal(model: nn.Module, images: Tensor, labels: Tensor, routes: Routes, seed: int) -> Section:
    """Measure what is left without the critical nodes; the truth is the label, or the full network's prediction."""
    from convsmith.interpretation import removal_curve
    from convsmith.report import Figure, Section, Table
    from convsmith.report.figures import Series, lines

    known = bool((labels >= 0).all())
    truth = labels if known else routes.prediction.cpu()
    curves, rows = {}, []
    for order, name in (("critical", "most critical"), ("random", "random"), ("least", "least critical")):
        curve = removal_curve(model, images, truth, routes, FRACTIONS, order=order, seed=seed)
        curves[name] = Series(
            [100 * f for f in curve.fractions],
            [100 * a for a in curve.accuracy],
            [100 * v for v in curve.low],
            [100 * v for v in curve.high],
        )
        rows.append([name, *(round(100 * a, 1) for a in curve.accuracy)])
    ylabel = "accuracy, %" if known else "same prediction, %"
    return Section(
        "Without the critical nodes",
        [
            f"Nodes switched off image by image on {len(images)} images, highest gate first, beside the same number at "
            "random and lowest gate first. Bands are 95 % Wilson intervals over images."
        ],
        [Table(["nodes removed", *(f"{100 * f:g} %" for f in FRACTIONS)], rows, f"{ylabel} after removal.")],
        [
            Figure(
                lines(curves, xlabel="nodes removed, %", ylabel=ylabel),
                f"{ylabel} by share of removed nodes.",
                "Three falling curves: most critical nodes first, random, least critical first.",
            )
        ],
    )


def chapter(
    found: Explained,
    routes: Routes,
    row: int,
    heat: Tensor,
    contrast: Contrast,
    probabilities: Tensor,
    neighbours: tuple[Any, ...] | None,
) -> Section:
    """Return one image's chapter: picture, heat map, classes, strips of gates, deciding channels, neighbours, flags."""
    from convsmith.report import Figure, Picture, Section, Table
    from convsmith.report.figures import png, strips

    def named(label: int) -> str:
        return found.classes[label] if found.classes else f"class {label}"

    top = probabilities.topk(min(5, len(probabilities)))
    classes = [[named(int(k)), round(float(p), 4)] for p, k in zip(top.values, top.indices, strict=True)]
    gates = {name: g[row].cpu().tolist() for name, g in routes.gates.items()}
    layers = [[name, len(values), sum(v > 0 for v in values), round(max(values), 2)] for name, values in gates.items()]
    deciding = [
        [layer, int(channel), round(float(effect), 4)]
        for layer, channel, effect in zip(
            contrast.layer[row], contrast.channel[row], contrast.effect[row].cpu(), strict=True
        )
        if float(effect) != 0
    ]
    prediction, second = named(int(routes.prediction[row])), named(int(routes.runner_up[row]))
    label = int(found.labels[row])
    truth = "" if label < 0 else f" The label is {named(label)}."
    share, kept = float(routes.sparsity()[row]), bool(routes.kept[row])
    lowered = float(routes.gamma[row]) < 0.999 * float(routes.settings["gamma"])
    text = [
        f"Predicted {prediction} ({float(routes.confidence[row]):.1%}).{truth} {share:.1%} of {routes.total} nodes "
        f"{'carry' if kept else 'do not carry'} it: the network restricted to them "
        f"{'predicts the same' if kept else 'predicts something else'}, at a divergence of "
        f"{float(routes.divergence[row]):.3f} nats. Gates weigh {float(routes.gamma[row]):.2g} each"
        + (" (lowered until every layer stays open)." if lowered else "."),
    ]
    pictures = [
        Picture(png(found.pixels[row].cpu().numpy()), "the image", f"{found.names[row]}"),
        Picture(
            png((heat / heat.max().clamp(min=1e-12)).numpy()),
            "pathway gradient",
            "bright where a pixel moves the class score on this route",
        ),
    ]
    if neighbours is not None:
        for pixels, near, alike in zip(*neighbours, strict=True):
            shown = named(int(near)) if int(near) >= 0 else "unlabelled"
            pictures.append(
                Picture(png(pixels.numpy()), f"{shown}, {float(alike):.2f}", "training image with a near route")
            )
    return Section(
        found.names[row],
        text,
        [
            Table(["class", "probability"], classes, "Top classes of the full network."),
            Table(["layer", "nodes", "critical", "largest gate"], layers, "The route by layer."),
            Table(
                ["layer", "channel", "effect"],
                deciding,
                f"Channels of the route that weigh most between {prediction} and {second} (margin "
                f"{float(contrast.margin[row]):.2f}); a positive effect speaks for {prediction}.",
            ),
        ],
        [
            Figure(
                strips(gates, xlabel="channels of the layer"),
                "Gates by layer; white is closed.",
                "One strip per layer, dark where a gate is open.",
            )
        ],
        pictures,
        routes.messages(row),
    )


def _probabilities(model: nn.Module, images: Tensor) -> Tensor:
    from convsmith.interpretation import apply_routes

    return apply_routes(model, images, {}).softmax(1).cpu()
