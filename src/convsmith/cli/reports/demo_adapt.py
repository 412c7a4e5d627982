"""The demonstration's adaptation part: MNIST to UCI digits, of which the target shows five of ten classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convsmith.cli.shell import terminal
from convsmith.cli.shell.progress import progress

if TYPE_CHECKING:
    from convsmith.adaptation import AdaptationResult
    from convsmith.cli.verbs.demo import Context

TITLE = "Adapt from MNIST to UCI digits 0-4, whose labels nobody looks at"
SOURCE, TARGET, CLASSES, STEPS = "mnist-5k", "digits", "0-4", 400
METHODS = ("source-only", "dann", "san")


def run(context: Context) -> None:
    """Train source-only, DANN and SAN with one recipe, compare them, save SAN's predictions and the sections."""
    from convsmith import adaptation
    from convsmith.adaptation.inputs import resolve
    from convsmith.cli.reports.adaptation_report import sections

    options = adaptation.InputOptions(target_classes=CLASSES, size=16, channels=1, crop=(20, None))
    inputs = resolve(SOURCE, TARGET, options, seed=context.seed)
    found: dict[str, AdaptationResult] = {}
    for method in METHODS:
        settings: dict[str, Any] = {} if method == "source-only" else {"hidden": (64,)}
        with progress(method) as callback:
            found[method] = adaptation.adapt(
                "cs_lenet",
                inputs,
                method=method,
                steps=STEPS,
                lr=0.05,
                seed=context.seed,
                device=context.device,
                reference=found.get("source-only"),
                use_target_labels=True,
                progress=callback,
                **settings,
            )
    accuracy = {name: round(100 * result.measurements["oracle_accuracy"], 1) for name, result in found.items()}
    terminal.table(("method", "target accuracy (oracle), %"), list(accuracy.items()))
    found["san"].predictions.save(context.folder / "adapt-predictions.csv")
    comparison(found).save(context.folder, "50-adapt-comparison")
    chapters = sections(found["san"], inputs)
    chapters.pop("50-adaptation")
    for name, section in chapters.items():
        section.save(context.folder, name)
    context.headline["adapted by SAN | DANN | source-only, %"] = " | ".join(
        str(accuracy[name]) for name in ("san", "dann", "source-only")
    )


def comparison(found: dict[str, AdaptationResult]) -> Any:
    """Return the chapter that puts the three side by side."""
    from convsmith.report import Figure, Section, Table
    from convsmith.report.figures import Series, lines

    rows: list[list[Any]] = []
    series = {}
    for name, result in found.items():
        m = result.measurements
        alarms = "; ".join(a.kind for a in result.alarms) or "none"
        rows.append([name, 100 * m["oracle_accuracy"], 100 * m["source_accuracy"], m["effective_classes"], alarms])
        curve = [row for row in result.history if row["kind"] == "evaluation"]
        series[name] = Series([r["step"] for r in curve], [100 * r["oracle_accuracy"] for r in curve])
    columns = ["method", "target accuracy (oracle), %", "source accuracy, %", "effective predicted classes", "alarms"]
    return Section(
        "Adaptation to a target with fewer classes",
        [
            "Source: MNIST digits 0 to 9 with labels. Target: UCI digits 0 to 4 without labels. One small network, one "
            "recipe, one seed; the last step is kept. Target labels are used for the accuracies shown here only.",
            "DANN aligns the target with all ten source classes; SAN weighs the classes by how likely the target holds "
            "them. One seed proves nothing: see the study transfer/target-classes for intervals.",
        ],
        [Table(columns, rows)],
        [
            Figure(
                svg=lines(series, xlabel="training step", ylabel="target accuracy, %"),
                caption="Target accuracy during training (uses labels, for the picture only).",
                alt="Three curves of target accuracy over steps for source-only, DANN and SAN.",
            )
        ],
    )
