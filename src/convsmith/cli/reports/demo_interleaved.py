"""The demonstration's interleaved part: a network of less than half the control's weights on the same digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convsmith.cli.reports.demo_training import BATCH, fit
from convsmith.cli.shell import evaluation, terminal

if TYPE_CHECKING:
    from convsmith.cli.verbs.demo import Context

TITLE = "Train an interleaved network of half the control's parameters on the same digits"
NAME, EPOCHS = "igcv1_small", 20


def run(context: Context) -> None:
    """Train ``igcv1_small`` by the control's recipe, fold it, and put the two beside each other."""
    import torch

    from convsmith import training
    from convsmith.compression import cost, fold_for_inference
    from convsmith.models.storage import ModelRecipe, build
    from convsmith.report import Section, Table

    images, about = context.images, context.images.description
    kwargs = {"num_classes": len(about.classes), "in_chans": about.channels}
    torch.manual_seed(context.seed)
    model = build(ModelRecipe(NAME, kwargs, description=about.to_json()))
    config = training.TrainConfig(epochs=EPOCHS, lr=0.1, seed=context.seed, device=context.device)
    fit(model, images, config)

    size = (about.channels, *about.size)
    rows: list[tuple[Any, ...]] = []
    for name, network in ((context.recipe.name, context.model), (NAME, model), (f"{NAME}, folded", None)):
        measured = fold_for_inference(model.to("cpu")) if network is None else network
        found = evaluation.evaluate(
            measured,
            images.test,
            name=name,
            device="cpu" if network is None else context.device,
            batch_size=BATCH,
            seed=context.seed,
        )
        counted = cost(measured, size)
        interval = found.metrics.intervals["top1"]
        rows.append(
            (
                name,
                counted.params,
                counted.macs,
                counted.activations,
                counted.traffic,
                100 * found.metrics.top1,
                f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}",
            )
        )
    columns = ("network", "parameters", "MACs", "activations", "traffic, bytes", "test accuracy, %", "95 % interval")
    terminal.table(columns, rows)
    share = rows[1][1] / rows[0][1]
    Section(
        "Interleaved group convolutions",
        text=[
            f"{NAME} has {share:.0%} of the control's parameters. Each of its blocks is a chain of two group "
            "convolutions whose composite kernel is dense: every input channel reaches every output channel by "
            "exactly one path.",
            "Folded: the same function for inference, with every batch normalisation in the weights. Traffic counts "
            "the bytes that all operators read and write for one image.",
        ],
        tables=[Table(columns, rows, "One image per forward pass; same recipe, data order and updates.")],
    ).save(context.folder, "20-interleaved")
    context.headline["interleaved network: parameters of the control | accuracy, %"] = f"{share:.0%} | {rows[1][5]:.1f}"
