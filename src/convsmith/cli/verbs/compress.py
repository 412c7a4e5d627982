"""``convsmith compress``: make a network smaller: interleave, low rank, prune, quantise."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsmith.cli.shell import classifier, data_options, environment, run_folder, terminal
from convsmith.cli.shell.method_settings import method_settings
from convsmith.cli.shell.options import MOST_WORKERS, Work, option
from convsmith.errors import InvalidArgument, RunFailed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convsmith.cli.reports.compression_stages import Stage
    from convsmith.data import ImageData
    from convsmith.models.storage import LoadedModel

EXAMPLES = (
    "compress runs/first --data digits --method low-rank --keep-macs 0.5 --finetune-epochs 5 --out runs/small",
    "compress runs/first --data digits --method interleave,int8 --keep-macs 0.5 --finetune-epochs 5",
    "compress runs/first --data digits --method prune-filters --keep-latency 0.5 --runtime onnxruntime",
    "compress runs/first --data digits --method prune-filters --keep-macs 0.4 --plan plan.yaml --dry-run",
    "compress runs/first --data digits --method prune-filters --plan plan.yaml --finetune-epochs 5",
    "compress runs/first --data digits --method int8 --set mode=qat --finetune-epochs 2",
)
#: images drawn from the training split for shapes, scan and calibration
EXAMPLE_IMAGES = 128

_budget, _finetune, _timing = (partial(option, group=group) for group in ("budget", "finetune", "timing"))
_share = partial(_budget, None, metavar="F", one_of="budget")


@dataclass(frozen=True, kw_only=True)
class Arguments(classifier.TrainedOptions, data_options.LoaderOptions, Work):
    """Compress a trained network, fine-tune it, measure size, time and accuracy beside the original."""

    method: str = option(help="one method or a chain A,B; see: methods 'compression method'", metavar="A[,B]")
    keep_macs: float | None = _share("share of operations to keep, 0 to 1")
    keep_params: float | None = _share("share of parameters to keep")
    keep_latency: float | None = _share("share of the measured time to keep")
    runtime: str = _budget("torch", "where --keep-latency is measured: torch, compile, onnxruntime", metavar="NAME")
    plan: str | None = _budget(
        None, "YAML or JSON plan of the first method: obeyed, or written with --dry-run", metavar="FILE"
    )
    dry_run: bool = _budget(False, "print (and with --plan write) the plan, change nothing")
    set: tuple[str, ...] = option((), "settings of the methods, like decomposition=svd", metavar="NAME=VALUE")
    augment: str = _finetune("none", "random changes of images during fine-tuning", metavar="NAME")
    finetune_epochs: int = _finetune(0, "epochs of training with the original as teacher", metavar="N", least=0)
    finetune_lr: float = _finetune(0.02, "learning rate of the fine-tuning", metavar="X")
    distill: float = _finetune(0.5, "weight of the teacher against the labels, 0 to 1", metavar="X")
    freeze_norm: bool = _finetune(False, "keep the statistics of batch normalisation (few images)")
    gradual: bool = _finetune(False, "sparse methods: let the zeros grow during the fine-tuning")
    renorm: bool = option(False, "give batch normalisation the statistics of the smaller network (no labels)")
    reconstruct: bool = option(True, "re-solve weights on unlabelled images, layer by layer, where the method can")
    onnx: bool = _timing(True, "end with model.onnx, checked and timed in ONNX Runtime")
    threads: int = _timing(1, "threads of the timing", metavar="N", least=1, most=MOST_WORKERS)
    compiled: bool = _timing(True, "also time under torch.compile (a minute or so)")

    def budgets(self) -> dict[str, float | None]:
        """Return the three budgets by their names in Python."""
        return {"keep_macs": self.keep_macs, "keep_params": self.keep_params, "keep_latency": self.keep_latency}


def run(arguments: Arguments) -> dict[str, Any]:
    """Load, plan, compress, fine-tune, measure, write."""
    parts = check(arguments)
    from convsmith import compression, data
    from convsmith.cli.reports import compression_stages
    from convsmith.compression import runtimes
    from convsmith.models.storage import load_model, save_model
    from convsmith.training import resolve_device

    device = resolve_device(arguments.device)
    data.AUGMENTATIONS.entry(arguments.augment)
    saved = classifier.is_saved(arguments.model) or arguments.weights is not None
    if saved:
        loaded = load_model(arguments.model, weights=arguments.weights, device=device)
        images = data_options.load(arguments, augment=arguments.augment, like=classifier.trained_on(loaded))
    else:
        images = data_options.load(arguments, augment=arguments.augment)
        about = images.description
        loaded = load_model(arguments.model, num_classes=len(about.classes), in_chans=about.channels, device=device)
        terminal.complain("note", f"{arguments.model} is untrained: its weights are random, accuracies mean nothing")
    classifier.check_takes(loaded.model, images.train)
    example = compression_stages.example_of(images.train, EXAMPLE_IMAGES, arguments.seed).to(device)
    if arguments.dry_run:
        return _dry_run(arguments, parts, loaded, example)
    plan = None if arguments.plan is None else compression.Plan.load(arguments.plan)
    folder = run_folder.open_run("compress", arguments)
    judge = _held_out(images)
    before = None if judge is None else compression_stages.accuracy(loaded.model, judge, arguments)
    try:
        stages = compression_stages.compress_stages(
            loaded.model, images, example, arguments, parts, folder=folder, plan=plan, judge=judge
        )
    except compression.FinetuneInterrupted as stopped:
        raise run_folder.Interrupted("compress", folder, str(stopped)) from stopped
    for number, stage in enumerate(stages, 1):
        terminal.say(stage.plan.text())
        stage.plan.save(folder / f"plan-{number}-{stage.plan.method}.yaml")
    comparison = compression_stages.compare(loaded.model, before, stages, example, arguments)
    compression_stages.show(comparison)
    final = stages[-1].model
    runtimes.note_rounding(final, stages[-2].model if len(stages) > 1 else loaded.model, example)
    recipe = replace(loaded.recipe, compression=tuple(compression.compression_history(final)))
    save_model(folder, final.to("cpu"), recipe)
    shipped = _ship(final, example.cpu(), folder) if arguments.onnx else None
    return _conclude(arguments, folder, comparison, stages, images, shipped)


def _ship(model: nn.Module, example: Tensor, folder: Path) -> dict[str, Any]:
    """Write ``model.onnx`` and compare it with the network on real images; a network ONNX cannot hold says why."""
    from convsmith.compression import runtimes

    try:
        file = runtimes.write_onnx(model, example[:2], folder / "model.onnx")
    except RunFailed as error:
        terminal.complain("note", f"no ONNX file: {error.given}")
        return {"file": None, "reason": str(error.given)}
    worst = max(runtimes.differences(model, runtimes.onnx_function(file), example).values())
    if not worst <= runtimes.tolerance(model):
        rule, hint = "the ONNX file does not compute what the network computes", "add --no-onnx to leave it out"
        raise RunFailed(rule, argument="model.onnx", given=f"relative difference {worst:.3g} ({file})", hint=hint)
    terminal.say(f"onnx    {file}", f"        differs from the network by {worst:.2g} at most")
    return {"file": str(file), "difference": worst, "kB": round(file.stat().st_size / 1024, 1)}


def check(arguments: Arguments) -> dict[str, dict[str, Any]]:
    """Refuse bad flags before anything is read; return the settings of every method of the chain."""
    from convsmith.compression import METHODS, budget_of
    from convsmith.compression.runtimes import check_runtime

    if not arguments.dry_run:
        run_folder.check("compress", arguments)
    elif arguments.plan is not None:
        run_folder.new_file(Path(arguments.plan), "--plan", "name another file")
    methods = [name.strip() for name in arguments.method.split(",") if name.strip()]
    if not methods:
        raise InvalidArgument("a method is needed", argument="--method", given=repr(arguments.method))
    if len(set(methods)) < len(methods):
        raise InvalidArgument("a chain names a method once", argument="--method", given=arguments.method)
    parts = method_settings(arguments.set, {name: METHODS[name] for name in methods})
    budget, _ = budget_of(methods, **arguments.budgets())
    for runtime in (arguments.runtime, *["onnxruntime"] * (arguments.onnx and not arguments.dry_run)):
        check_runtime(runtime)
    environment.refuse_unread({"--runtime": (arguments.keep_latency is not None, "--keep-latency F")})
    if arguments.plan is not None and budget is not None and not arguments.dry_run:
        rule = "a plan replaces the budget"
        raise InvalidArgument(rule, argument=f"--plan {arguments.plan}", hint="give one of them")
    for name, part in parts.items():
        METHODS[name](**part)
    own = [field for field in fields(arguments) if field.metadata["group"] == "finetune"]
    given = [field.name for field in own if getattr(arguments, field.name) != field.default]
    if given and not arguments.finetune_epochs:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InvalidArgument("this belongs to a fine-tuning", argument=flags, hint="add --finetune-epochs N")
    if arguments.finetune_epochs and methods == ["int8"] and parts["int8"].get("mode", "static") == "static":
        hint = "add --set mode=qat, or leave the fine-tuning away"
        raise InvalidArgument("static int8 is not trained", argument="--finetune-epochs", hint=hint)
    return parts


def _dry_run(
    arguments: Arguments, parts: dict[str, dict[str, Any]], loaded: LoadedModel, example: Any
) -> dict[str, Any]:
    """Print the plan of the first method, and write it if a file is named."""
    from convsmith.cli.reports.compression_stages import planned

    plan = planned(loaded.model, example, arguments, parts, 0)
    terminal.say(plan.text())
    if len(parts) > 1:
        terminal.say(f"the plan of {list(parts)[1]} depends on the network that {plan.method} leaves")
    summary = {"method": plan.method, "keeps": {kind: plan.kept(kind) for kind in ("macs", "params")}}
    if arguments.plan is None:
        return summary
    terminal.say(f"plan    {plan.save(arguments.plan)}")
    return {**summary, "plan": arguments.plan}


def _held_out(images: ImageData) -> Any:
    """Return labelled images the network was not trained on, or None with a note."""
    from convsmith.cli.verbs.train import held_out

    try:
        return held_out(images)[1]
    except InvalidArgument as error:
        terminal.complain("note", f"accuracy is not measured: {error.rule}")
        return None


def _conclude(
    arguments: Arguments,
    folder: Path,
    comparison: Any,
    stages: list[Stage],
    images: ImageData,
    shipped: dict[str, Any] | None,
) -> dict[str, Any]:
    from convsmith.cli.reports.compression_stages import write_sections
    from convsmith.compression.planning.table import case_words

    base, last = comparison.rows[0], comparison.rows[-1]
    headline: dict[str, Any] = {
        "MACs kept, %": round(100 * last.size.macs / base.size.macs, 1),
        "file kept, %": round(100 * (last.size.bytes + last.size.recipe) / (base.size.bytes + base.size.recipe), 1),
    }
    for case in comparison.cases():
        found = last.latency.get(case)
        if found is not None and not isinstance(found, str):
            headline[f"time kept ({case_words(case)}), %"] = round(100 * found.ratio, 1)
    if base.accuracy is not None and last.final() is not None:
        headline["accuracy, % (95 % interval)"] = last.final().text()
        headline["accuracy of the original, % (95 % interval)"] = base.accuracy.text()
    summary = {
        "title": f"{arguments.model}, {arguments.method}, on {images.description.name}",
        "headline": headline,
        "comparison": comparison.to_json(),
        "keeps": {stage.name: {kind: stage.plan.kept(kind) for kind in ("macs", "params")} for stage in stages},
    }
    if shipped is not None:
        summary["onnx"] = shipped
    write_sections(comparison, stages, folder)
    return run_folder.conclude(folder, summary)
