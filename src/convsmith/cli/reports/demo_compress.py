"""The demonstration's compression: five ways to shrink the trained network, fine-tuned, in one honest table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convsmith.cli.reports import compression_stages

if TYPE_CHECKING:
    from convsmith.cli.verbs.demo import Context

TITLE = "Compress the network"
#: method, budget, settings, epochs of fine-tuning; sized for the part's 45 seconds on two cores
WAYS: tuple[tuple[str, float | None, dict[str, Any], int], ...] = (
    ("low-rank", 0.5, {}, 3),
    ("prune-filters", 0.5, {}, 3),
    ("interleave", 0.5, {"data_aware": False}, 3),
    ("ternary", None, {}, 3),
    ("int8", None, {}, 0),
)


def run(context: Context) -> None:
    """Compress in every way, measure, write the sections."""
    images = context.images
    example = compression_stages.example_of(images.train, 128, context.seed).to(context.device)
    how = compression_stages.Finetune(seed=context.seed, device=context.device)
    before = compression_stages.accuracy(context.model, images.test, how)
    stages = []
    for method, keep, settings, epochs in WAYS:
        how.epochs = epochs
        stages += compression_stages.compress_stages(
            context.model,
            [method],
            images,
            example,
            budgets=compression_stages.Budgets(keep_macs=keep),
            settings=settings,
            finetune=how,
            judge=images.test,
        )
    comparison = compression_stages.compare(
        context.model, before, stages, example, threads=1, compiled=False, seconds=0.15
    )
    compression_stages.show(comparison)
    compression_stages.write_sections(comparison, stages, context.folder, first=25)
    half = [row for row in comparison.rows[1:] if row.size.macs <= 0.51 * comparison.rows[0].size.macs]
    best = max(half, key=lambda row: row.final().value)  # type: ignore[union-attr]  # all rows were judged
    context.headline[f"accuracy at half the MACs ({best.name}), %"] = round(100 * best.final().value, 2)  # type: ignore[union-attr]
