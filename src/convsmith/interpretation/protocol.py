"""An honest detection table: seen and unseen attacks, harmless changes as negatives, cheap baselines, a null check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import jpeg

from convsmith.arguments import checked, one_of
from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument
from convsmith.files import replacing
from convsmith.interpretation.ablation import apply_routes
from convsmith.interpretation.attacks import _normalisation, attack, default_steps
from convsmith.interpretation.baselines import NAMES as BASELINES
from convsmith.interpretation.baselines import extractor
from convsmith.interpretation.detector import DetectionReport, RouteDetector, detection_report
from convsmith.interpretation.find import Progress
from convsmith.interpretation.settings import route_settings
from convsmith.interpretation.trees import CLASSIFIERS

#: attacks of the table: name -> (method, targeted)
ATTACKS_SHOWN: Mapping[str, tuple[str, bool]] = {
    "targeted ifgsm": ("ifgsm", True),
    "ifgsm": ("ifgsm", False),
    "fgsm": ("fgsm", False),
    "pgd": ("pgd", False),
}
HARMLESS = ("noise", "blur", "jpeg")
FEATURES = ("routes", *BASELINES)


@dataclass(frozen=True)
class Images:
    """Normalised images [B, C, H, W], labels [B] (-1 unknown), image numbers [B], and the normalisation to undo."""

    images: Tensor
    labels: Tensor
    index: Tensor
    mean: Sequence[float]
    std: Sequence[float]

    def rows(self, chosen: Tensor) -> Images:
        """Return some of them."""
        return Images(self.images[chosen], self.labels[chosen], self.index[chosen], self.mean, self.std)

    def labelled(self, model: nn.Module) -> Images:
        """Return them with the network's prediction in the place of every unknown label."""
        known = self.labels >= 0
        if bool(known.all()):
            return self
        return replace(self, labels=torch.where(known, self.labels, _predictions(model, self.images).to(self.labels)))


@dataclass(frozen=True)
class DetectionRow:
    """One cell: ``features`` and ``classifier`` fitted on ``seen``, scored on ``attack`` (or a harmless change).

    ``flipped``: share of images whose prediction the change turned. Harmless changes are reported with the same
    numbers: their area should be near 0.5 and their hit rate is a false-alarm rate.
    """

    features: str
    classifier: str
    per_class: int
    attack: str
    seen: bool
    harmless: bool
    flipped: float
    report: DetectionReport


@checked
def detection_table(
    model: nn.Module,
    train: Images,
    test: Images,
    *,
    epsilon: float,
    seen: str = "ifgsm",
    unseen: Sequence[str] = ("fgsm", "pgd", "targeted ifgsm"),
    per_class: Sequence[int] = (1, 5, 10),
    classifiers: Sequence[str] = ("random-forest",),
    features: Sequence[str] = FEATURES,
    find: Mapping[str, Any] | None = None,
    trees: int = 50,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> list[DetectionRow]:
    """Fit detectors on few images a class and one attack, and score them on other images, attacks and harmless changes.

    Test images are never train images (refused by ``index``). Where a label is unknown the prediction takes its place;
    then a class may have fewer training images than asked for. Clean images go through the same rounding to 8 bit as
    attacked ones. Targeted attacks aim at a class drawn by the seed, another for train and test. A row "none" is the
    null check: the clean test images once more, in a pass of their own, must score 0.5 (state left over from the first
    pass, as in the published code, gives 1.0).

    ``find``: settings of `find_routes` (default: paper mode); its ``batch_size`` divides attacks, too. ``features``:
    ``"routes"`` and names of baselines. ``folder``: attacked images and routes of finished batches are kept there, and
    those of an interrupted call with the same arguments are not found again. ``progress``: passes over one image done,
    `table_passes`, a note.

    Examples:
        >>> known = Images(images.clamp(-1, 1), labels, torch.arange(8), [0.5] * 3, [0.5] * 3)
        >>> train, test = known.rows(labels < 4), known.rows(labels >= 4)
        >>> rows = detection_table(model, train, test, epsilon=0.5, per_class=[1], features=["logits"], trees=5)
    """
    if set(train.index.tolist()) & set(test.index.tolist()):
        raise InvalidArgument("test images must not be train images", given="shared image numbers")
    for name in (seen, *unseen):
        one_of("attack", name, [*ATTACKS_SHOWN])
    for name in features:
        one_of("features", name, FEATURES)
    for name in classifiers:
        one_of("classifiers", name, CLASSIFIERS)
    settings = dict(find or {"mode": "paper"})
    fewer = bool((train.labels < 0).any())
    train, test = train.labelled(model), test.labelled(model)
    chosen = train.rows(balanced(train.labels, max(per_class), seed, fewer=fewer))
    total = table_passes(len(chosen.labels), len(test.labels), (seen, *unseen), settings, features)
    done = 0

    def tick(passes: int, note: str) -> None:
        nonlocal done
        done += passes
        if progress is not None:
            progress(done, total, note)

    def moved(images: Images, name: str, drawn: int, side: str) -> Tensor:
        place, size = None if folder is None else Path(folder, side), settings.get("batch_size")
        return attacked(model, images, name, epsilon, drawn, at_once=size, folder=place, tick=tick)

    changes = {
        "clean": rounded(test),
        **{name: moved(test, name, seed + 1, "test") for name in (seen, *unseen)},
        **{name: harmless(test, name, epsilon, seed) for name in HARMLESS},
        "none": rounded(test),
    }
    fit_on = {"clean": rounded(chosen), seen: moved(chosen, seen, seed, "fit")}
    plain = _predictions(model, changes["clean"])
    flipped = {name: float((_predictions(model, x) != plain).float().mean()) for name, x in changes.items()}
    rows, index = [], test.index.tolist()
    for feature in features:
        extract = extractor(model, feature, settings, folder, tick)
        train_routes = {n: extract(Batch(x, chosen.labels, chosen.index), f"fit-{n}") for n, x in fit_on.items()}
        test_routes = {name: extract(Batch(x, test.labels, test.index), f"test-{name}") for name, x in changes.items()}
        for classifier in classifiers:
            for count in per_class:
                few = balanced(chosen.labels, count, seed, fewer=fewer)
                detector = RouteDetector(classifier, seed=seed, trees=trees)
                detector.fit(train_routes["clean"][few], train_routes[seen][few])
                scores = {name: detector.score(routes) for name, routes in test_routes.items()}
                clean = scores.pop("clean")
                for name, found in scores.items():
                    report = detection_report(clean, found, clean_index=index, adversarial_index=index, seed=seed)
                    calm = name in (*HARMLESS, "none")
                    cell = DetectionRow(feature, classifier, count, name, name == seen, calm, flipped[name], report)
                    rows.append(cell)
    return rows


def table_passes(
    fit: int, test: int, attacks: Sequence[str], find: Mapping[str, Any], features: Sequence[str] = FEATURES
) -> int:
    """Return the passes over one image that a table costs at most; ``attacks``: the seen one first."""
    moved = test * sum(map(_attack_steps, attacks)) + fit * _attack_steps(attacks[0])
    looked = 2 * fit + test * (len(attacks) + len(HARMLESS) + 2)
    return moved + looked * sum(route_settings(find).most_steps if feature == "routes" else 1 for feature in features)


def _attack_steps(name: str) -> int:
    return default_steps(ATTACKS_SHOWN[name][0])


def attacked(
    model: nn.Module,
    pictures: Images,
    name: str,
    epsilon: float,
    seed: int,
    *,
    at_once: int | None = None,
    folder: Path | None = None,
    tick: Callable[[int, str], None] | None = None,
) -> Tensor:
    """Return the attacked images, normalised; targets of a targeted attack are other classes drawn by ``seed``.

    ``at_once``: images of a part with a random start of its own, kept in ``folder``; ``tick``: told passes and a note.
    """
    from safetensors.torch import load_file, save_file

    method, targeted = ATTACKS_SHOWN[name]
    labels = pictures.labels
    if targeted:
        classes = max(int(labels.max()) + 1, 2)
        shift = torch.randint(1, classes, labels.shape, generator=torch.Generator().manual_seed(seed))
        labels = (labels + shift.to(labels)) % classes
    size, parts = at_once or len(labels), []
    for first in range(0, len(labels), size):
        rows = slice(first, first + size)
        file = None if folder is None else folder / f"{name}-{first:06d}.safetensors"
        if file is not None and file.exists():
            part = load_file(file)["images"].to(pictures.images)
        else:
            part = attack(
                model, pictures.images[rows], labels[rows], method, epsilon, targeted=targeted,
                mean=pictures.mean, std=pictures.std, seed=seed + first,
            ).to(pictures.images)  # fmt: skip
            if file is not None:
                with replacing(file) as draft:
                    save_file({"images": part.contiguous()}, draft)
        if tick is not None:
            tick(len(part) * _attack_steps(name), f"{name} on images")
        parts.append(part)
    return torch.cat(parts)


def rounded(pictures: Images) -> Tensor:
    """Return the images rounded to 8 bit as attacked ones are."""
    return _through_pixels(pictures, lambda pixels: pixels)


def harmless(pictures: Images, name: str, epsilon: float, seed: int) -> Tensor:
    """Return images with a change no attacker made: sign ``"noise"`` of the same size, ``"blur"`` or ``"jpeg"``."""
    if name == "noise":
        generator = torch.Generator().manual_seed(seed)
        sign = torch.randint(0, 2, pictures.images.shape, generator=generator) * 2 - 1
        return _through_pixels(pictures, lambda pixels: pixels + epsilon * sign.to(pixels))
    one_of("harmless change", name, HARMLESS)
    return _through_pixels(pictures, {"blur": _blur, "jpeg": _jpeg}[name])


def _through_pixels(pictures: Images, change: Callable[[Tensor], Tensor]) -> Tensor:
    mean, std = _normalisation(pictures.images, pictures.mean, pictures.std)
    pixels = change((pictures.images * std + mean).clamp(0, 1))
    return ((pixels.clamp(0, 1) * 255).round() / 255 - mean) / std


def _blur(pixels: Tensor) -> Tensor:
    """Gaussian of standard deviation 0.5 pixel, 3 x 3."""
    weights = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * 0.25)).to(pixels)
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    channels = pixels.shape[1]
    padded = nn.functional.pad(pixels, (1, 1, 1, 1), mode="replicate")
    return nn.functional.conv2d(padded, kernel.expand(channels, 1, 3, 3), groups=channels)


def _jpeg(pixels: Tensor) -> Tensor:
    return jpeg((pixels * 255).round().to(torch.uint8).cpu(), quality=75).to(pixels) / 255


def balanced(labels: Tensor, count: int, seed: int, *, fewer: bool = False) -> Tensor:
    """Return places of ``count`` rows of each class, drawn by ``seed``; nested: fewer rows are among more.

    ``fewer``: a class with less gives what it has; else that is an error.
    """
    generator = torch.Generator().manual_seed(seed)
    places = []
    for label in labels.unique().tolist():
        own = (labels == label).nonzero()[:, 0].cpu()
        order = torch.randperm(len(own), generator=generator)[:count]  # always drawn: the next class stays the same
        if len(own) < count and not fewer:
            raise InvalidArgument("too few images of a class", argument=f"{count} of class {label}", given=len(own))
        places.append(own[order] if len(own) > count else own)
    return torch.cat(places).to(labels.device)


def _predictions(model: nn.Module, images: Tensor) -> Tensor:
    return apply_routes(model, images, {}, batch_size=128).argmax(1).cpu()
