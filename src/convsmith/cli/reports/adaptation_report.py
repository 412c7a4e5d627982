"""The chapters of a report on an adaptation, from its result alone."""

from __future__ import annotations

from typing import Any

from convsmith.adaptation import AdaptationResult
from convsmith.adaptation.evaluation.alarms import effective_classes
from convsmith.adaptation.evaluation.diagnostics import embed, proxy_a_distance, shared_auroc
from convsmith.adaptation.inputs import Inputs
from convsmith.inspection.features import extract_features
from convsmith.report import Figure, Section, Table
from convsmith.report.figures import Series, groups, lines


def sections(result: AdaptationResult, inputs: Inputs) -> dict[str, Section]:
    """Return the chapters by file name: result and alarms, class weights, training, features."""
    made = {"50-adaptation": _outcome(result, inputs), "52-adaptation-training": _training(result)}
    if result.class_weights is not None:
        made["51-class-weights"] = _weights(result, inputs)
    made["53-adaptation-features"] = _features(result, inputs)
    return made


_MEASURED = {
    "source_accuracy": "accuracy on held-out source images, 0 to 1",
    "oracle_accuracy": "oracle accuracy on the target, 0 to 1",
    "target_entropy": "mean entropy of the target's predictions, nats",
    "effective_classes": "effective number of predicted classes",
    "infomax": "InfoMax, nats (lower is better)",
    "agreement": "share of target images called as by source-only",
    "moved": "share of predictions that moved to other classes",
    "collapse_alarm": "alarm: few classes are left, or most predictions are not source-only's (1 yes, 0 no)",
    "negative_transfer_alarm": "alarm: the validator prefers source-only (1 yes, 0 no)",
}


def _outcome(result: AdaptationResult, inputs: Inputs) -> Section:
    base = {} if result.reference is None else result.reference.measurements
    rows: list[list[Any]] = []
    for key, value in result.measurements.items():
        twice = key == "entropy" and value == result.measurements.get("target_entropy")
        if key != "selection" and not key.startswith("weight_") and not twice:
            rows.append([_MEASURED.get(key, key.replace("_", " ")), value, base.get(key)])
    chosen = "the last step was kept" if result.validator is None else f"the step was chosen by {result.validator}"
    text = [
        f"{result.method} trained for {result.steps} updates; {chosen} (step {result.selected_step}). "
        f"{len(inputs.source)} labelled source images of {len(inputs.classes)} classes, "
        f"{len(inputs.target)} target images.",
        f"Confidences in predictions.csv are calibrated by one temperature ({result.predictions.temperature:.3g}), "
        "fitted on held-out source images weighted by how target-like they are.",
    ]
    if "oracle_accuracy" in result.measurements:
        use = "the step was" if result.validator == "oracle" else "it is shown only; nothing was"
        text.append(f"Oracle accuracy uses the target's labels; {use} chosen by it.")
    shares = _shares(result)
    return Section(
        "Adaptation",
        text,
        [
            Table(["measured", result.method, "source-only"], rows, "Of the weights that were kept."),
            Table(["class", "share of predictions, %", "mean confidence, %"], shares, "Predictions for the target."),
        ],
        notes=list(result.warnings),
    )


def _shares(result: AdaptationResult) -> list[list[Any]]:
    labels, confidence = result.predictions.labels, result.predictions.confidence
    rows: list[list[Any]] = []
    for k, name in enumerate(result.classes):
        mine = labels == k
        sure = round(100 * float(confidence[mine].mean()), 1) if bool(mine.any()) else None
        rows.append([name, round(100 * float(mine.double().mean()), 2), sure])
    return rows


def _weights(result: AdaptationResult, inputs: Inputs) -> Section:
    assert result.class_weights is not None
    known = inputs.shared if "oracle_accuracy" in result.measurements else ()
    rows = [
        [name, float(w), *(["shared" if k in known else "outlier"] if known else [])]
        for k, (name, w) in enumerate(zip(result.classes, result.class_weights, strict=True))
    ]
    effective = effective_classes(result.class_weights)
    text = [f"Effective number of classes by these weights: {effective:.2f} of {len(result.classes)}."]
    if known and len(known) < len(result.classes):
        auroc = shared_auroc(result.class_weights, known)
        text.append(f"Shared classes are ranked above outlier classes with AUROC {auroc:.3f} (uses target labels).")
    table = Table(["class", "weight", *(["truth"] if known else [])], rows, "Equal weights are no preference.")
    return Section("Class weights", text, [table], _weight_figures(result))


def _weight_figures(result: AdaptationResult) -> list[Figure]:
    rows = [row for row in result.history if row["kind"] == "evaluation" and "weight_0" in row]
    if len(rows) < 2 or len(result.classes) > 12:
        return []
    steps = [row["step"] for row in rows]
    weights = result.weight_history / result.weight_history.mean(1, keepdim=True)
    series = {name: Series(steps, column) for name, column in zip(result.classes, weights.T.tolist(), strict=True)}
    svg = lines(series, xlabel="training step", ylabel="class weight, mean 1", reference=(1.0, "no preference"))
    return [Figure(svg, "Class weights during training.", "One curve a class of its weight over steps.")]


def _training(result: AdaptationResult) -> Section:
    rows = [row for row in result.history if row["kind"] == "evaluation"]
    curves = {"held-out source accuracy": "source_accuracy", "target accuracy (oracle)": "oracle_accuracy"}
    series = {
        name: Series([r["step"] for r in rows], [100 * r[key] for r in rows])
        for name, key in curves.items()
        if rows and key in rows[0]
    }
    if not series:
        return Section("Adaptation during training")
    svg = lines(series, xlabel="training step", ylabel="accuracy, %")
    figure = Figure(svg, "Accuracy during training.", "Curves of accuracy over steps.")
    return Section("Adaptation during training", figures=[figure])


def _features(result: AdaptationResult, inputs: Inputs) -> Section:
    sides = (inputs.source, inputs.target)
    few = [side.subset(range(0, len(side), max(1, len(side) // 1000))) for side in sides]
    source, target = (extract_features(result.model, inputs.batches(part)).features for part in few)
    if min(len(source), len(target)) < 4:
        return Section("Features", ["Too few images to compare the domains."])
    text = [
        f"Proxy A-distance of source and target features: {proxy_a_distance(source, target):.2f} "
        "(0: a linear classifier cannot tell them apart, 2: it always can). With a partial target some distance must "
        "remain, since the source shows classes that the target lacks."
    ]
    left, right, _, _ = embed(source, target)
    clouds = {"source": left.numpy(), "target": right.numpy()}
    svg = groups(clouds, xlabel="t-SNE, first axis", ylabel="t-SNE, second axis")
    alt = "Points of source and target images in a plane."
    return Section("Features", text, figures=[Figure(svg, "Features of source and target images.", alt)])
