"""The demonstration's pooling part: the control network with average pooling and with iSQRT-COV, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convsmith.cli.reports.demo_training import BATCH, fit
from convsmith.cli.shell import evaluation, terminal

if TYPE_CHECKING:
    from convsmith.cli.verbs.demo import Context

TITLE = "The same network with average pooling and with the covariance's square root"
EPOCHS, DIM = 12, 32


def run(context: Context) -> None:
    """Train the control twice from the same start by one recipe, the pooling apart; write the comparison."""
    import torch

    from convsmith import training
    from convsmith.models.storage import ModelRecipe, build
    from convsmith.pooling import PooledClassifier
    from convsmith.pooling.diagnostics import diagnose
    from convsmith.report import Figure, Section, Table
    from convsmith.report.figures import Series, lines
    from convsmith.report.second_order import second_order_section

    images, about = context.images, context.images.description
    kwargs = {"num_classes": len(about.classes), "in_chans": about.channels}
    rows: list[tuple[Any, ...]] = []
    curves: dict[str, Series] = {}
    accuracy: dict[str, float] = {}
    for name, dim in (("average", 256), ("isqrt-cov", DIM)):
        torch.manual_seed(context.seed)
        pooling = {"pooling": name, "dim": dim, "last_stride": 1, "input_size": list(about.size)}
        model = build(ModelRecipe(context.recipe.name, kwargs, pooling=pooling, description=about.to_json()))
        config = training.TrainConfig(epochs=EPOCHS, lr=0.05, clip=5.0, seed=context.seed, device=context.device)
        result = fit(model, images, config, title=name)
        found = evaluation.evaluate(
            model, images.test, name=name, device=context.device, batch_size=BATCH, seed=context.seed
        )
        low, high = found.metrics.intervals["top1"]
        accuracy[name] = found.metrics.top1
        parameters = sum(p.numel() for p in model.parameters())
        rows.append((name, parameters, 100 * found.metrics.top1, 100 * low, 100 * high, round(result.seconds, 1)))
        checked = [row for row in result.history if row["kind"] == "evaluation"]
        curves[name] = Series([row["epoch"] for row in checked], [100 * row["accuracy"] for row in checked])
    batch = images.test.fetch(range(min(64, len(images.test)))).images.to(context.device)
    model.eval()
    assert isinstance(model, PooledClassifier)
    with torch.no_grad():
        spectrum = diagnose(model.pooling.reduce(model.forward_features(batch)))
    Section(
        "Average pooling and iSQRT-COV",
        [
            f"{context.recipe.name} with its last stage at stride 1, trained {EPOCHS} epochs from the same seed, data"
            " order and recipe; only the pooling and the classifier behind it differ."
        ],
        [
            Table(
                ["pooling", "parameters", "test accuracy, %", "95 % from", "to", "training, s"],
                rows,
                "One seed; the interval is over test images.",
            )
        ],
        [
            Figure(
                lines(curves, xlabel="epoch", ylabel="validation accuracy, %"),
                "Validation accuracy while training.",
                "Two rising curves of validation accuracy, one per pooling.",
            )
        ],
    ).save(context.folder, "30-pooling")
    second_order_section(spectrum, title="What the covariance sees").save(context.folder, "31-spectrum")
    context.headline["average | iSQRT-COV pooling, accuracy, %"] = " | ".join(
        f"{100 * v:.1f}" for v in accuracy.values()
    )
    terminal.say("  ".join(f"{name}: {100 * value:.1f} %" for name, value in accuracy.items()))
