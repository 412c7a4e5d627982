"""An honest detection table: seen and unseen attacks, harmless changes as negatives, cheap baselines, a null check."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convsmith.errors import InvalidArgument
from convsmith.interpretation.attacks import attack
from convsmith.interpretation.baselines import NAMES as BASELINES
from convsmith.interpretation.baselines import baseline_features
from convsmith.interpretation.detector import DetectionReport, RouteDetector, detection_report
from convsmith.interpretation.find import Progress, find_routes
from convsmith.interpretation.routes import Routes

#: attacks of the table: name -> (method, targeted)
ATTACKS_SHOWN: Mapping[str, tuple[str, bool]] = {
    "targeted ifgsm": ("ifgsm", True),
    "ifgsm": ("ifgsm", False),
    "fgsm": ("fgsm", False),
    "pgd": ("pgd", False),
}
HARMLESS = ("noise", "blur", "jpeg")


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
    features: Sequence[str] = ("routes", *BASELINES),
    find: Mapping[str, Any] | None = None,
    trees: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[DetectionRow]:
    """Fit detectors on few images a class and one attack, and score them on other images, attacks and harmless changes.

    Test images are never train images (refused by ``index``). Where a label is unknown the prediction takes its place;
    then a class may have fewer training images than asked for. Clean images go through the same rounding to 8 bit as
    attacked ones. Targeted attacks aim at a class drawn by the seed, another for train and test. A row "none" is the
    null check: the clean test images once more, in a pass of their own, must score 0.5 (state left over from the first
    pass, as in the published code, gives 1.0).

    ``find``: settings of `find_routes` (default: paper mode). ``features``: ``"routes"`` and names of baselines.

    Examples:
        >>> known = Images(images.clamp(-1, 1), labels, torch.arange(8), [0.5] * 3, [0.5] * 3)
        >>> train, test = known.rows(labels < 4), known.rows(labels >= 4)
        >>> rows = detection_table(model, train, test, epsilon=0.5, per_class=[1], features=["logits"], trees=5)
    """
    if set(train.index.tolist()) & set(test.index.tolist()):
        raise InvalidArgument("test images must not be train images", given="shared image numbers")
    for name in (seen, *unseen):
        if name not in ATTACKS_SHOWN:
            raise InvalidArgument(
                "no attack has this name", argument="attack", given=repr(name), hint=", ".join(ATTACKS_SHOWN)
            )
    settings = dict(find or {"mode": "paper"})
    fewer = bool((train.labels < 0).any())
    train, test = train.labelled(model), test.labelled(model)
    chosen = train.rows(balanced(train.labels, max(per_class), seed, fewer=fewer))
    names = (seen, *unseen, *HARMLESS, "none")
    done, total = 0, 2 + len(unseen) + len(features) * (len(names) + 3)

    def step(note: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, note)
        done += 1

    def moved(pictures: Images, name: str, drawn: int) -> Tensor:
        step(f"{name} on {len(pictures.labels)} images")
        return attacked(model, pictures, name, epsilon, drawn)

    changes = {
        "clean": rounded(test),
        **{name: moved(test, name, seed + 1) for name in (seen, *unseen)},
        **{name: harmless(test, name, epsilon, seed) for name in HARMLESS},
        "none": rounded(test),
    }
    fit_on = {"clean": rounded(chosen), seen: moved(chosen, seen, seed)}
    plain = _predictions(model, changes["clean"])
    flipped = {name: float((_predictions(model, x) != plain).float().mean()) for name, x in changes.items()}
    rows: list[DetectionRow] = []
    for feature in features:
        extract = extractor(model, feature, settings)

        def found(side: dict[str, Tensor], about: Images, feature: str = feature, extract: Any = extract) -> Any:
            made = {}
            for name, x in side.items():
                step(f"{feature} of {name}")
                made[name] = extract(x, about)
            return made

        train_routes, test_routes = found(fit_on, chosen), found(changes, test)
        for classifier in classifiers:
            for count in per_class:
                few = balanced(chosen.labels, count, seed, fewer=fewer)
                detector = RouteDetector(classifier, seed=seed, trees=trees)
                detector.fit(train_routes["clean"][few], train_routes[seen][few])
                rows += _score(detector, test_routes, feature, classifier, count, seen, flipped, seed)
    if progress is not None:
        progress(total, total, "detectors")
    return rows


def attacked(model: nn.Module, pictures: Images, name: str, epsilon: float, seed: int) -> Tensor:
    """Return the attacked images, normalised; targets of a targeted attack are other classes drawn by ``seed``."""
    method, targeted = ATTACKS_SHOWN[name]
    labels = pictures.labels
    if targeted:
        classes = int(labels.max()) + 1
        shift = torch.randint(1, max(classes, 2), labels.shape, generator=torch.Generator().manual_seed(seed))
        labels = (labels + shift.to(labels)) % classes
    return attack(
        model,
        pictures.images,
        labels,
        method,
        epsilon,
        targeted=targeted,
        mean=pictures.mean,
        std=pictures.std,
        seed=seed,
    )


def rounded(pictures: Images) -> Tensor:
    """Return the images rounded to 8 bit as attacked ones are."""
    return _through_pixels(pictures, lambda pixels: pixels)


def harmless(pictures: Images, name: str, epsilon: float, seed: int) -> Tensor:
    """Return images with a change no attacker made: sign ``"noise"`` of the same size, ``"blur"`` or ``"jpeg"``."""
    if name == "noise":
        generator = torch.Generator().manual_seed(seed)
        sign = torch.randint(0, 2, pictures.images.shape, generator=generator) * 2 - 1
        return _through_pixels(pictures, lambda pixels: pixels + epsilon * sign.to(pixels))
    if name == "blur":
        return _through_pixels(pictures, _blur)
    if name == "jpeg":
        return _through_pixels(pictures, _jpeg)
    raise InvalidArgument("no harmless change has this name", argument=name, hint=", ".join(HARMLESS))


def _through_pixels(pictures: Images, change: Callable[[Tensor], Tensor]) -> Tensor:
    shape = (1, -1, 1, 1)
    mean = pictures.images.new_tensor(list(pictures.mean)).view(shape)
    std = pictures.images.new_tensor(list(pictures.std)).view(shape)
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
    """Save and read again at quality 75."""
    from PIL import Image

    made = []
    for image in (pixels * 255).round().to(torch.uint8).cpu():
        array = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format="JPEG", quality=75)
        back = torch.from_numpy(np.array(Image.open(buffer)))
        made.append(back[None] if back.dim() == 2 else back.permute(2, 0, 1))
    return torch.stack(made).to(pixels) / 255


def extractor(model: nn.Module, feature: str, settings: Mapping[str, Any]) -> Callable[[Tensor, Images], Routes]:
    """Return what finds ``"routes"`` (with settings of `find_routes`) or a baseline's features of images."""
    if feature == "routes":
        return lambda images, about: find_routes(model, images, labels=about.labels, index=about.index, **settings)
    sites = settings.get("sites", "auto")
    return lambda images, about: baseline_features(model, images, feature, sites=sites, index=about.index)


def _score(
    detector: RouteDetector,
    found: Mapping[str, Routes],
    feature: str,
    classifier: str,
    count: int,
    seen: str,
    flipped: Mapping[str, float],
    seed: int,
) -> list[DetectionRow]:
    clean = found["clean"]
    scores = detector.score(clean)
    rows = []
    for name, routes in found.items():
        if name == "clean":
            continue
        report = detection_report(
            scores,
            detector.score(routes),
            clean_index=clean.index.tolist(),
            adversarial_index=routes.index.tolist(),
            seed=seed,
        )
        harmless_change = name in HARMLESS or name == "none"
        rows.append(
            DetectionRow(feature, classifier, count, name, name == seen, harmless_change, flipped[name], report)
        )
    return rows


def balanced(labels: Tensor, count: int, seed: int, *, fewer: bool = False) -> Tensor:
    """Return places of ``count`` rows of each class, drawn by ``seed``; nested: fewer rows are among more.

    ``fewer``: a class with less gives what it has; else that is an error.
    """
    generator = torch.Generator().manual_seed(seed)
    places = []
    for label in labels.unique().tolist():
        own = (labels == label).nonzero()[:, 0].cpu()
        if len(own) < count and not fewer:
            raise InvalidArgument("too few images of a class", argument=f"{count} of class {label}", given=len(own))
        places.append(own[torch.randperm(len(own), generator=generator)[:count]] if len(own) > count else own)
    return torch.cat(places).to(labels.device)


def _predictions(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in images.split(128)])
