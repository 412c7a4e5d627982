"""What `compress` does between its flags and its report: plan and compress in stages, fine-tune, measure, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convsmith import compression, training
from convsmith.cli.shell import terminal
from convsmith.cli.shell.progress import progress
from convsmith.compression import Accuracy, Comparison, Plan
from convsmith.data import ImageData, ImageSplit, Loader
from convsmith.errors import InvalidArgument
from convsmith.report import Figure, Section, Table
from convsmith.report.figures import scatter
from convsmith.training.checkpoint import saved_steps


@dataclass(kw_only=True)
class Stage:
    """A prefix of the chain of methods and the network it gave."""

    name: str
    model: nn.Module
    plan: Plan
    accuracy: Accuracy | None = None
    finetuned: Accuracy | None = None


def example_of(split: ImageSplit, count: int, seed: int) -> Tensor:
    """Return up to ``count`` images [B, C, H, W], drawn by ``seed``: shapes, scan and calibration come from them."""
    if not len(split):
        raise InvalidArgument("compression looks at training images, and there are none", given=split.description.name)
    return split.drawn(count, seed).fetch(slice(None)).images


def compress_stages(
    model: nn.Module,
    images: ImageData,
    example: Tensor,
    arguments: Any,
    parts: Mapping[str, Mapping[str, Any]],
    *,
    folder: Path,
    plan: Plan | None = None,
    judge: ImageSplit | None = None,
) -> list[Stage]:
    """Return one stage per method by the flags ``arguments``; ``parts``: the settings of each method of the chain.

    Fine-tuning follows every method whose result can be trained. A static int8 stage is not: what comes before it is
    fine-tuned first.
    """
    stages: list[Stage] = []
    work = model
    for i, (name, settings) in enumerate(parts.items()):
        made = plan if i == 0 and plan is not None else planned(work, example, arguments, parts, i)
        with progress(f"compress {name}") as callback:
            again = _asked(arguments)
            work = compression.compress(
                work, name, example=example, plan=made, reconstruct=again, progress=callback, **settings
            )
        for note in compression.compression_history(work)[-1]["notes"]:
            terminal.complain("note", f"{name}: {note}")
        trainable = not isinstance(work, compression.Int8Model)
        if arguments.renorm and trainable:
            work = compression.reestimate_batchnorm(work, _loader(images.train, arguments, shuffle=True))
        stage = Stage(name=",".join(list(parts)[: i + 1]), model=work, plan=made)
        stages.append(stage)
        if judge is not None:
            stage.accuracy = accuracy(work, judge, arguments)
        if arguments.finetune_epochs and trainable:
            stage.model = work = _finetuned(work, model, images, arguments, folder / "finetune" / f"{i + 1:02d}-{name}")
            if judge is not None:
                stage.finetuned = accuracy(work, judge, arguments)
        elif trainable:
            stage.model = work = compression.finish(work)
        elif arguments.finetune_epochs:  # what it was made from is fine-tuned
            stage.finetuned = stage.accuracy
    return stages


def planned(
    model: nn.Module, example: Tensor, arguments: Any, parts: Mapping[str, Mapping[str, Any]], number: int
) -> Plan:
    """Plan the method of that number of the chain, with the budget if it is the one to obey it."""
    name, settings = list(parts.items())[number]
    budget, place = compression.budget_of(list(parts), **arguments.budgets())
    share = {f"keep_{budget.kind}": budget.keep} if budget is not None and place == number else {}
    with progress(f"plan {name}") as callback:
        return compression.plan_compression(
            model,
            name,
            example=example,
            runtime=arguments.runtime,
            reconstruct=_asked(arguments),
            progress=callback,
            **share,
            **settings,
        )


def _asked(arguments: Any) -> bool | None:
    """Return whether weights are re-solved: None where images are enough, False where the user wants none."""
    return None if arguments.reconstruct else False


def _finetuned(work: nn.Module, model: nn.Module, images: ImageData, arguments: Any, folder: Path) -> nn.Module:
    config = training.TrainConfig(
        epochs=arguments.finetune_epochs,
        lr=arguments.finetune_lr,
        clip=1.0,
        seed=arguments.seed,
        device=str(training.resolve_device(arguments.device)),
    )
    loader = _loader(images.train, arguments, shuffle=True, augment=True, fill_last=True)
    sparse = any(compression.METHODS[s["method"]].keeps_zeros for s in compression.compression_history(work))
    with progress("finetune") as callback:
        return compression.finetune(
            work,
            model,
            loader,
            num_classes=len(images.classes),
            config=config,
            distill=arguments.distill,
            freeze_norm=arguments.freeze_norm,
            gradual=arguments.gradual and sparse,
            out=folder,
            # killed before its first checkpoint a stage begins again
            resume=arguments.resume and bool(saved_steps(folder)),
            progress=callback,
        )


def _loader(split: ImageSplit, arguments: Any, **settings: Any) -> Loader:
    return Loader(split, arguments.batch_size, seed=arguments.seed, workers=arguments.num_workers, **settings)


def accuracy(model: nn.Module, split: ImageSplit, arguments: Any) -> Accuracy:
    """Measure the share of right answers with its interval."""
    device = training.resolve_device(arguments.device)
    logits, labels, _ = training.predict(model, _loader(split, arguments), device)
    metrics = training.classification_metrics(logits, labels, arguments.seed)
    return Accuracy(metrics.top1, *metrics.intervals["top1"])


def compare(
    original: nn.Module, before: Accuracy | None, stages: Sequence[Stage], example: Tensor, arguments: Any
) -> Comparison:
    """Measure sizes, latencies and layer errors of all stages beside the original, in one run."""
    networks = {"original": original, **{stage.name: stage.model for stage in stages}}
    with progress("time") as callback:
        how = {"compiled": arguments.compiled, "onnx": arguments.onnx, "threads": arguments.threads}
        times = compression.latencies(networks, example, progress=callback, **how)
    shape = tuple(example.shape[1:])
    rows = [compression.Row("original", compression.size(original, shape), times["original"], before)]
    for stage in stages:
        size, errors = compression.size(stage.model, shape), compression.layer_errors(original, stage.model, example)
        row = compression.Row(stage.name, size, times[stage.name], stage.accuracy, stage.finetuned, errors)
        rows.append(row)
    return compression.Comparison(rows, arguments.threads)


def show(comparison: Comparison) -> None:
    """Print the table, its notes and the front."""
    for part in _parts(comparison):
        terminal.table(*part)
    for note in comparison.notes():
        terminal.complain("note", note)
    if comparison.front():
        terminal.say(f"Pareto front (accuracy, time at batch 1): {', '.join(comparison.front())}")


def _parts(comparison: Comparison) -> list[tuple[list[str], list[list[str]]]]:
    """Return the table in two that fit a page: size and accuracy, then times."""
    columns, cells, timed = comparison.columns(), comparison.cells(), len(comparison.cases())
    rest = len(columns) - timed
    size = (columns[:rest], [row[:rest] for row in cells])
    return [size, (columns[:1] + columns[rest:], [row[:1] + row[rest:] for row in cells])] if timed else [size]


def write_sections(comparison: Comparison, stages: Sequence[Stage], folder: Path) -> None:
    """Write the report's chapters: the table with its front, the plans, the error of every layer."""
    figures = []
    points = {name: (ms, 100 * value) for name, (value, ms) in comparison.points().items()}
    if len(points) > 1:
        svg = scatter(points, xlabel="ms for one image", ylabel="accuracy, %", front=comparison.front())
        said = ", ".join(f"{name}: {y:.1f} % in {x:.3g} ms" for name, (x, y) in points.items())
        figures.append(Figure(svg, "Accuracy against time; the line joins the Pareto front.", said))
    threads = f"{comparison.threads} thread{'s' * (comparison.threads > 1)}"
    text = [
        f"Timed with {threads}, networks in turns in one run; in brackets the median ratio to the "
        "original. File: weights and recipe. Accuracy on held-out images with 95 % bootstrap intervals."
    ]
    tables = [Table(*part) for part in _parts(comparison)]
    Section("Compression", text, tables, figures, notes=comparison.notes()).save(folder, "20-compression")
    tables = []
    for stage in stages:
        plan = stage.plan
        lines = [
            [c.layer, _share(c.macs), _share(c.params), c.sensitivity, _said(c.setting), c.note] for c in plan.choices
        ]
        lines += [[name, None, None, None, "left alone", reason] for name, reason in plan.skipped.items()]
        columns = ["layer", "MACs kept, %", "parameters kept, %", "sensitivity", "setting", "remark"]
        tables.append(Table(columns, lines, stage.name))
    about = "Sensitivity: relative squared error of the network's output when this layer alone is changed."
    Section("What was done to each layer", [about], tables).save(folder, "21-plans")
    errors = {row.name: row.layer_errors for row in comparison.rows[1:]}
    names = list(dict.fromkeys(name for found in errors.values() for name in found))
    cells = [[name, *(found.get(name) for found in errors.values())] for name in names]
    about = "Relative squared error of each layer's output on training images, whole networks run; after fine-tuning."
    Section("Error of each layer", [about], [Table(["layer", *errors], cells)]).save(folder, "22-layers")


def _share(pair: tuple[int, int]) -> float | None:
    return round(100 * pair[1] / pair[0], 1) if pair[0] else None


def _said(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in setting.items()) or "unchanged"
