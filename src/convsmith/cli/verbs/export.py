"""``convsmith export``: write a network for deployment and check its numbers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convsmith.cli.shell import classifier, run_folder, terminal
from convsmith.cli.shell.options import MOST_PIXELS, option
from convsmith.errors import ConvsmithError, InvalidArgument, RunFailed

if TYPE_CHECKING:
    from torch import Tensor, nn

EXAMPLES = (
    "export runs/first --format onnx --out runs/onnx",
    "export runs/small --format torch-export --out runs/pt2",
    "export resnet18 --format onnx --size 224 --tolerance 1e-4",
)


@dataclass(frozen=True, kw_only=True)
class Arguments(classifier.TrainedOptions):
    """Write a network as ONNX or as a torch.export program, and compare it with the network at two batch sizes."""

    format: Literal["onnx", "torch-export"] = option("onnx", "kind of file")
    size: int | None = option(
        None, "side of the images (default: what the network was made for)", metavar="PIXELS", least=1, most=MOST_PIXELS
    )
    pretrained: bool = option(False, "a timm name: take its published weights")
    tolerance: float | None = option(
        None,
        "largest difference allowed, relative to the largest output (default: 1e-4; int8: what its codes cost, twice)",
        metavar="X",
        above=0,
    )


def run(arguments: Arguments) -> dict[str, Any]:
    """Load, write, read back, compare."""
    run_folder.check("export", arguments)
    if arguments.device not in ("auto", "cpu"):
        rule, hint = "a file is written and compared on the cpu", "leave --device out"
        raise InvalidArgument(rule, argument="--device", given=arguments.device, hint=hint)

    from convsmith.compression import runtimes
    from convsmith.models.storage import load_model

    if arguments.format == "onnx":
        runtimes.check_runtime("onnxruntime")
    saved = classifier.is_saved(arguments.model) or arguments.weights is not None
    if saved and arguments.pretrained:
        hint = "leave --pretrained out: the saved weights are taken"
        raise InvalidArgument("published weights belong to a name", argument=f"MODEL {arguments.model}", hint=hint)
    loaded = load_model(arguments.model, weights=arguments.weights, pretrained=arguments.pretrained)
    if not saved and not arguments.pretrained:
        terminal.complain("note", f"{arguments.model} is untrained: its weights are random")
    images = runtimes.noise(input_shape(loaded.model, loaded.description, arguments.size), arguments.seed)
    folder = run_folder.open_run("export", arguments)
    try:
        return written(loaded.model, images, folder, arguments)
    except ConvsmithError:
        run_folder.discard(folder, arguments)
        raise


def written(model: nn.Module, images: Tensor, folder: Path, arguments: Arguments) -> dict[str, Any]:
    """Write the file and what the comparison found; a file that computes something else is an error."""
    from convsmith.compression import runtimes

    write = write_onnx if arguments.format == "onnx" else write_program
    file, compute = write(model, images, folder)
    differences = runtimes.differences(model, compute, images)
    tolerance = runtimes.tolerance(model) if arguments.tolerance is None else arguments.tolerance
    worst = max(differences.values())
    if not worst <= tolerance:
        rule, given = "the file does not compute what the network computes", f"relative difference {worst:.3g}"
        hint = "the file is removed; a larger --tolerance keeps it"
        raise RunFailed(rule, argument=f"--tolerance {tolerance:g}", given=given, hint=hint)
    summary = {
        "title": f"{arguments.model} as {arguments.format}",
        "headline": {"file, kB": round(file.stat().st_size / 1024, 1), "largest relative difference": worst},
        "file": str(file),
        "input": ["batch", *images.shape[1:]],
        "differences": {f"batch {count}": value for count, value in differences.items()},
    }
    run_folder.write_json(folder / "result.json", summary)
    checked = " and ".join(map(str, runtimes.CHECKED))
    terminal.say(f"file    {file}", f"checked at batch {checked}: differs by {worst:.2g} at most")
    return {"run": str(folder), **summary}


def input_shape(model: nn.Module, description: Any, size: int | None) -> tuple[int, int, int]:
    """Return (C, H, W): from the training data's description, else timm's configuration, else the flag."""
    published = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if description is not None:
        channels, (height, width) = description["channels"], description["size"]
    elif published:
        channels, (height, width) = getattr(model, "in_chans", published[0]), published[1:]
    elif size is not None:
        from convsmith.inspection import feature_maps

        return feature_maps.input_shape(model, (size, size))
    else:
        raise InvalidArgument("the size of the images is not known", argument="MODEL", hint="add --size PIXELS")
    return (channels, size or height, size or width)


def write_onnx(model: nn.Module, images: Tensor, folder: Path) -> tuple[Path, Any]:
    """Write ``model.onnx`` with a free batch size; return it and a function that runs it in onnxruntime."""
    from convsmith.compression import runtimes

    file = runtimes.write_onnx(model, images, folder / "model.onnx")
    return file, runtimes.onnx_function(file)


def write_program(model: nn.Module, images: Tensor, folder: Path) -> tuple[Path, Any]:
    """Write ``model.pt2`` with a free batch size; return it and a function that runs what was read back."""
    import torch

    from convsmith.files import replacing

    file, held = folder / "model.pt2", io.BytesIO()
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.export.export(model.eval(), (images,), dynamic_shapes=({0: batch},))
    except Exception as error:
        rule, hint = "torch.export cannot write this network", "leave out the layer it names, or use --format onnx"
        given = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise RunFailed(rule, argument="torch-export", given=given, hint=hint) from error
    torch.export.save(program, held)  # through memory: torch's own writer aborts the process on a full disk
    with replacing(file) as draft:
        draft.write_bytes(held.getbuffer())
    read = torch.export.load(file).module()

    def compute(x: Tensor) -> Tensor:
        with torch.no_grad():
            return read(x)

    return file, compute
