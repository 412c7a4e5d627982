"""Compress in stages, fine-tune, measure, write the chapters of a report; shared by compress and the demonstration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsmith.cli.shell import terminal
from convsmith.cli.shell.progress import progress
from convsmith.errors import InvalidArgument

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convsmith.compression import Accuracy, Comparison, Plan
    from convsmith.data import ImageData, ImageSplit


@dataclass(kw_only=True)
class Stage:
    """A prefix of the chain of methods and the network it gave."""

    name: str
    model: nn.Module
    plan: Plan
    accuracy: Accuracy | None = None
    finetuned: Accuracy | None = None


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """At most one is set; see `convsmith.compression.compress`."""

    keep_macs: float | None = None
    keep_params: float | None = None
    keep_latency: float | None = None

    def given(self) -> dict[str, float]:
        """Return what is set."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(kw_only=True)
class Finetune:
    """How to train after compressing (``epochs`` 0: not at all); ``renorm``: first re-estimate batch normalisation."""

    epochs: int = 0
    lr: float = 0.02
    distill: float = 0.5
    gradual: bool = False
    renorm: bool = False
    batch_size: int = 64
    seed: int = 0
    device: str = "cpu"
    folder: Path | None = None
    resume: bool = False


def example_of(split: ImageSplit, count: int, seed: int) -> Tensor:
    """Return up to ``count`` images [B, C, H, W], drawn by ``seed``: shapes, scan and calibration come from them."""
    import torch

    if not len(split):
        raise InvalidArgument("compression looks at training images, and there are none", given=split.description.name)
    positions = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]
    return split.fetch(positions.sort().values).images


def split_settings(methods: Sequence[str], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return which method of a chain takes which setting; one that none takes is an error."""
    import dataclasses

    from convsmith.compression import METHODS
    from convsmith.errors import close_matches

    known: list[set[str]] = []
    for name in methods:
        method: Any = METHODS[name]
        known.append({item.name for item in dataclasses.fields(method)})
    for key in settings:
        if not any(key in names for names in known):
            raise InvalidArgument(
                f"{', '.join(methods)} has no such setting",
                argument="--set",
                given=key,
                hint=close_matches(key, set().union(*known)),
            )
    return [{key: value for key, value in settings.items() if key in names} for names in known]


def budgets_of(methods: Sequence[str], budgets: Budgets) -> list[dict[str, Any]]:
    """Return which method of a chain takes the budget: the first that can obey it."""
    from convsmith.compression import METHODS

    given = budgets.given()
    if len(given) > 1:
        asked = ", ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in given.items())
        raise InvalidArgument("give one budget", argument=asked)
    kinds = {"keep_macs": "macs", "keep_params": "params", "keep_latency": "macs"}
    for i, name in enumerate(methods):
        if all(kinds[key] in METHODS[name].budgets for key in given):
            return [dict(given) if j == i else {} for j in range(len(methods))]
    # none can: the first one's own error says so
    return [dict(given) if j == 0 else {} for j in range(len(methods))]


def compress_stages(
    model: nn.Module,
    methods: Sequence[str],
    images: ImageData,
    example: Tensor,
    *,
    budgets: Budgets,
    settings: Mapping[str, Any],
    finetune: Finetune,
    plan: Plan | None = None,
    runtime: str = "torch",
    reconstruct: bool = True,
    judge: ImageSplit | None = None,
) -> list[Stage]:
    """Return one stage per method. Fine-tuning follows every method whose result can be trained.

    A static int8 stage is not trained: what comes before it is fine-tuned first.
    """
    from convsmith import compression, data

    parts = split_settings(methods, settings)
    shares = budgets_of(methods, budgets)
    stages: list[Stage] = []
    work = model
    for i, name in enumerate(methods):
        label = ",".join(methods[: i + 1])
        made = plan if i == 0 else None
        if made is None:
            with progress(f"plan {name}") as callback:
                made = compression.plan_compression(
                    work, name, example=example, runtime=runtime, progress=callback, **shares[i], **parts[i]
                )
        with progress(f"compress {name}") as callback:
            work = compression.compress(
                work,
                name,
                example=example,
                plan=made,
                reconstruct=None if reconstruct else False,
                progress=callback,
                **parts[i],
            )
        for note in compression.compression_history(work)[-1]["notes"]:
            terminal.complain("note", f"{name}: {note}")
        trainable = not isinstance(work, compression.Int8Model)
        if finetune.renorm and trainable:
            batches = data.Loader(images.train, finetune.batch_size, seed=finetune.seed, shuffle=True)
            work = compression.reestimate_batchnorm(work, batches)
        stage = Stage(name=label, model=work, plan=made)
        stages.append(stage)
        if judge is not None:
            stage.accuracy = accuracy(work, judge, finetune)
        if finetune.epochs and trainable:
            work = _finetuned(work, model, images, finetune, place=f"{i + 1:02d}-{name}")
            stage.model = work
            if judge is not None:
                stage.finetuned = accuracy(work, judge, finetune)
        elif trainable and not finetune.epochs:
            work = compression.finish(work)
            stage.model = work
    return stages


def _finetuned(work: nn.Module, model: nn.Module, images: ImageData, how: Finetune, *, place: str) -> nn.Module:
    from convsmith import compression, data, training

    config = training.TrainConfig(epochs=how.epochs, lr=how.lr, clip=1.0, seed=how.seed, device=how.device)
    loader = data.Loader(
        images.train,
        how.batch_size,
        seed=how.seed,
        shuffle=True,
        augment=True,
        drop_last=len(images.train) >= how.batch_size,
    )
    sparse = any(compression.METHODS[s["method"]].keeps_zeros for s in compression.compression_history(work))
    folder = None if how.folder is None else how.folder / "finetune" / place
    resume = how.resume and folder is not None and (folder / "checkpoints").is_dir()
    with progress("finetune") as callback:
        return compression.finetune(
            work,
            model,
            loader,
            num_classes=len(images.classes),
            config=config,
            distill=how.distill,
            gradual=how.gradual and sparse,
            out=folder,
            resume=resume,
            progress=callback,
        )


def accuracy(model: nn.Module, split: ImageSplit, how: Finetune) -> Accuracy:
    """Measure the share of right answers with its interval."""
    from convsmith.compression import Accuracy
    from convsmith.data import Loader
    from convsmith.training import classification_metrics, predict

    logits, labels, _ = predict(model, Loader(split, how.batch_size), how.device)
    metrics = classification_metrics(logits, labels, how.seed)
    return Accuracy(metrics.top1, *metrics.intervals["top1"])


def compare(
    original: nn.Module,
    before: Accuracy | None,
    stages: Sequence[Stage],
    example: Tensor,
    *,
    threads: int,
    compiled: bool,
    onnx: bool = False,
    batches: Sequence[int] = (1, 32),
    seconds: float = 0.3,
) -> Comparison:
    """Measure sizes, latencies and layer errors of all stages beside the original, in one run."""
    from convsmith import compression

    networks = {"original": original, **{stage.name: stage.model for stage in stages}}
    with progress("time") as callback:
        times = compression.latencies(
            networks,
            example,
            batches=batches,
            compiled=compiled,
            onnx=onnx,
            threads=threads,
            seconds=seconds,
            progress=callback,
        )
    shape = tuple(example.shape[1:])
    rows = [compression.Row("original", compression.size(original, shape), times["original"], before)]
    rows += [
        compression.Row(
            stage.name,
            compression.size(stage.model, shape),
            times[stage.name],
            stage.accuracy,
            stage.finetuned,
            compression.layer_errors(original, stage.model, example),
        )
        for stage in stages
    ]
    return compression.Comparison(rows, threads)


def show(comparison: Comparison) -> None:
    """Print the table, its notes and the front."""
    terminal.table(comparison.columns(), comparison.cells())
    for note in comparison.notes():
        terminal.complain("note", note)
    if comparison.front():
        terminal.say(f"Pareto front (accuracy, time at batch 1): {', '.join(comparison.front())}")


def write_sections(comparison: Comparison, stages: Sequence[Stage], folder: Path, *, first: int) -> None:
    """Write the report's chapters: the table with its front, the plans, the error of every layer."""
    from convsmith.report import Section, Table
    from convsmith.report.figures import scatter
    from convsmith.report.section import Figure

    figures = []
    points = {name: (ms, 100 * value) for name, (value, ms) in comparison.points().items()}
    if len(points) > 1:
        svg = scatter(points, xlabel="ms per image, batch 1", ylabel="accuracy, %", front=comparison.front())
        said = ", ".join(f"{name}: {y:.1f} % in {x:.3g} ms" for name, (x, y) in points.items())
        figures.append(Figure(svg, "Accuracy against time; the line joins the Pareto front.", said))
    text = [
        f"Timed with {comparison.threads} thread(s), networks in turns in one run; in brackets the median ratio to the "
        "original. File: weights and recipe. Accuracy on held-out images with 95 % bootstrap intervals."
    ]
    table = Table(comparison.columns(), comparison.cells())
    Section("Compression", text, [table], figures, notes=comparison.notes()).save(folder, f"{first:02d}-compression")
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
    Section("What was done to each layer", [about], tables).save(folder, f"{first + 1:02d}-plans")
    errors = {row.name: row.layer_errors for row in comparison.rows[1:]}
    names = list(dict.fromkeys(name for found in errors.values() for name in found))
    cells = [[name, *(found.get(name) for found in errors.values())] for name in names]
    about = "Relative squared error of each layer's output on training images, whole networks run; after fine-tuning."
    Section("Error of each layer", [about], [Table(["layer", *errors], cells)]).save(folder, f"{first + 2:02d}-layers")


def _share(pair: tuple[int, int]) -> float | None:
    return round(100 * pair[1] / pair[0], 1) if pair[0] else None


def _said(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in setting.items()) or "unchanged"
