"""``convsmith export``: write a network for deployment and check its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convsmith.cli.shell import classifier, run_folder, terminal
from convsmith.cli.shell.options import Computation, option
from convsmith.errors import InvalidArgument, RunFailed, require

if TYPE_CHECKING:
    from torch import Tensor, nn

EXAMPLES = (
    "export runs/first --format onnx --out runs/onnx",
    "export runs/small --format torch-export --out runs/pt2",
    "export resnet18 --format onnx --size 224 --tolerance 1e-4",
)
#: batch sizes at which the file is compared with the network
CHECKED = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Arguments(Computation):
    """Write a network as ONNX or as a torch.export program, and compare it with the network at two batch sizes."""

    model: str = option(help="run folder, weights file or timm name", metavar="MODEL", positional=True)
    format: Literal["onnx", "torch-export"] = option("onnx", "kind of file")
    size: int | None = option(None, "side of the images (default: what the network was made for)", metavar="PIXELS")
    pretrained: bool = option(False, "a timm name: take its published weights")
    tolerance: float = option(1e-4, "largest difference allowed, relative to the largest output", metavar="X")


def run(arguments: Arguments) -> dict[str, Any]:
    """Load, write, read back, compare."""
    run_folder.check("export", arguments)
    if arguments.size is not None and arguments.size < 1:
        raise InvalidArgument("must be 1 or more", argument="--size", given=arguments.size)
    if not arguments.tolerance > 0:
        raise InvalidArgument("must be above 0", argument="--tolerance", given=arguments.tolerance)
    if arguments.format == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require(module, "onnx")
    import torch

    from convsmith.models.storage import load_model

    pretrained = arguments.pretrained and not classifier.is_saved(arguments.model)
    loaded = load_model(arguments.model, pretrained=pretrained)
    if not classifier.is_saved(arguments.model) and not pretrained:
        terminal.complain("note", f"{arguments.model} is untrained: its weights are random")
    shape = input_shape(loaded.model, loaded.description, arguments.size)
    generator = torch.Generator().manual_seed(arguments.seed)
    images = torch.randn(max(CHECKED), *shape, generator=generator)
    folder = run_folder.open_run("export", arguments)
    write = write_onnx if arguments.format == "onnx" else write_program
    file, compute = write(loaded.model, images, folder)
    differences = {}
    for count in CHECKED:
        with torch.no_grad():
            wanted, got = loaded.model(images[:count]), compute(images[:count])
        differences[count] = float((got - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-12)
    worst = max(differences.values())
    summary = {
        "title": f"{arguments.model} as {arguments.format}",
        "headline": {"file, kB": round(file.stat().st_size / 1024, 1), "largest relative difference": worst},
        "file": str(file),
        "input": ["batch", *shape],
        "differences": {f"batch {count}": value for count, value in differences.items()},
    }
    run_folder.write_json(folder / "result.json", summary)
    if not worst <= arguments.tolerance:
        raise RunFailed(
            "the file does not compute what the network computes",
            argument=f"--tolerance {arguments.tolerance:g}",
            given=f"relative difference {worst:.3g} ({file})",
        )
    terminal.say(f"file    {file}", f"checked at batch {CHECKED[0]} and {CHECKED[1]}: differs by {worst:.2g} at most")
    return {"run": str(folder), **summary}


def input_shape(model: nn.Module, description: Any, size: int | None) -> tuple[int, int, int]:
    """Return (C, H, W): from the training data's description, else timm's configuration, else the flag."""
    published = getattr(model, "pretrained_cfg", None) or {}
    known: list[int] = []
    if description is not None:
        known = [description["channels"], *description["size"]]
    elif published.get("input_size"):
        known = [getattr(model, "in_chans", published["input_size"][0]), *published["input_size"][1:]]
    if not known:
        raise InvalidArgument("the size of the images is not known", argument="MODEL", hint="add --size PIXELS")
    channels, height, width = known
    return (channels, size or height, size or width)


def write_onnx(model: nn.Module, images: Tensor, folder: Path) -> tuple[Path, Any]:
    """Write ``model.onnx`` with a free batch size; return it and a function that runs it in onnxruntime."""
    import torch

    onnxruntime: Any = require("onnxruntime", "onnx")
    file = folder / "model.onnx"
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        model.eval(), (images,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False, input_names=["images"]
    )
    if program is None:
        raise RunFailed("torch.onnx gave no program", argument="--format onnx")
    program.optimize()
    program.save(str(file), external_data=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def compute(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return file, compute


def write_program(model: nn.Module, images: Tensor, folder: Path) -> tuple[Path, Any]:
    """Write ``model.pt2`` with a free batch size; return it and a function that runs what was read back."""
    import torch

    file = folder / "model.pt2"
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(model.eval(), (images,), dynamic_shapes=({0: batch},)), file)
    read = torch.export.load(file).module()

    def compute(x: Tensor) -> Tensor:
        with torch.no_grad():
            return read(x)

    return file, compute
