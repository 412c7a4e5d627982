"""``convsmith detect``: tell adversarial inputs from clean ones by their routes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convsmith.cli.shell import classifier, data_options, run_folder, terminal
from convsmith.cli.shell.options import Work, option
from convsmith.cli.shell.progress import duration, pass_seconds, progress
from convsmith.errors import InvalidArgument

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convsmith.data import DataDescription, ImageData, ImageSplit
    from convsmith.interpretation import Images, RouteDetector, Routes

EXAMPLES = (
    "detect fit runs/first --data digits --per-class 10 --out runs/guard",
    "detect fit resnet18 --data images:holiday --features best --out runs/guard",
    "detect score runs/first photo.png --detector runs/guard/detector.safetensors",
    "detect score runs/first --data digits --limit 50 --detector runs/guard/detector.safetensors --json",
)
DETECTOR = "detector.safetensors"
SHOWN = 50
#: how cheap features are marked in a detector's settings -> their name
FEATURES = {"activation": "activations", "logits": "logits", "max-probability": "max-probability"}

_fit_option = partial(option, group="fit")


@dataclass(frozen=True, kw_only=True)
class Arguments(data_options.DataOptions, Work):
    """Tell adversarial inputs from clean ones by their routes: fit a detector and its table, or score images."""

    action: Literal["fit", "score"] = option(help="fit or score", positional=True)
    model: str = option(help="run folder, weights file or timm name", metavar="MODEL", positional=True)
    weights: str | None = option(None, "weights for MODEL: .safetensors or .pth", metavar="FILE")
    image_files: tuple[str, ...] = option((), "score: image files or folders", metavar="IMAGE", positional=True)
    data: str = option(
        "", "fit: images to attack, labels not needed (images:PATH); score: images to score", metavar="DATA"
    )
    detector: str | None = option(None, "score: the fitted detector", metavar="FILE")
    out: str | None = option(
        None,
        "fit: run folder to write (default: one in runs/); score: FILE.csv",
        metavar="DIR|FILE",
        group="common",
    )
    attack: Literal["fgsm", "ifgsm", "pgd", "targeted ifgsm"] = _fit_option("ifgsm", "the attack it is fitted on")
    epsilon: float = _fit_option(16.0, "largest change of a pixel, of 255", above=0, most=255)
    classifier: Literal["random-forest", "adaboost", "gradient-boosting"] = _fit_option("random-forest", "on routes")
    features: Literal["routes", "activations", "logits", "max-probability", "best"] = _fit_option(
        "routes", "what the detector looks at; best: what tells attacked images to fit on best"
    )
    per_class: int = _fit_option(10, "clean images of each class", metavar="N", least=1)
    test_images: int = _fit_option(100, "images of the table", metavar="N", least=1)
    rate: float = _fit_option(0.05, "false-positive rate of the threshold", above=0, below=1)
    sites: Literal["auto", "conv", "block", "activation"] = _fit_option("auto", "where gates sit")
    mode: Literal["paper", "converged"] = _fit_option("paper", "solver")
    gamma: float = _fit_option(0.05, "weight of the gates")


def run(arguments: Arguments) -> dict[str, Any]:
    """Fit or score."""
    if arguments.action == "fit":
        return _fit(arguments)
    for field in fields(arguments):
        given = getattr(arguments, field.name)
        if (field.name == "resume" or field.metadata["group"] == "fit") and given != field.default:
            flag = f"detect score --{field.name.replace('_', '-')}"
            raise InvalidArgument("it belongs to fit", argument=flag, given=given, hint="leave it out")
    return _score(arguments)


def _fit(arguments: Arguments) -> dict[str, Any]:
    if not arguments.data:
        raise InvalidArgument("fitting needs images", argument="detect fit", hint="add --data DATA")
    if arguments.image_files or arguments.detector is not None:
        raise InvalidArgument("images and --detector belong to score", argument="detect fit", hint="leave them out")
    run_folder.check("detect", arguments)
    from convsmith import interpretation
    from convsmith.cli.reports import detect_report, explain_save
    from convsmith.data import Batch
    from convsmith.interpretation import baselines, protocol
    from convsmith.interpretation.detector import fingerprint
    from convsmith.interpretation.settings import route_settings

    model, _, data = _network_and_data(arguments)
    assert data is not None
    for name, split in (("fit on", data.train), ("test on", data.test)):
        if len(split) < 2:
            raise InvalidArgument(f"too few images to {name}", argument=f"--data {arguments.data}", given=len(split))
    train = _images(_few(arguments, model, data.train), data)
    test = _images(data.test.drawn(arguments.test_images, arguments.seed), data)
    find: dict[str, Any] = {"mode": arguments.mode, "gamma": arguments.gamma, "sites": arguments.sites}
    epsilon = arguments.epsilon / 255
    unseen = tuple(name for name in protocol.ATTACKS_SHOWN if name != arguments.attack)
    chosen = train.labelled(model)
    if len(chosen.labels) < 2:
        hint = "a larger --per-class"
        raise InvalidArgument("a detector is fitted on two images or more", argument="--per-class", given=1, hint=hint)
    steps = route_settings(find).most_steps
    find["batch_size"] = detect_report.images_at_once(model, chosen.images, steps)
    folder = run_folder.open_run("detect", arguments)
    parts = explain_save.claim(folder / "detector.parts", fingerprint(model, train.images, test.images), "--resume")
    try:
        passes = protocol.table_passes(len(chosen.labels), len(test.labels), (arguments.attack, *unseen), find)
        first = chosen.images[: find["batch_size"]]
        lasts = duration(pass_seconds(model, first) / len(first) * passes)
        terminal.say(f"{len(chosen.labels)} images to fit, {len(test.labels)} to test: about {lasts} by a timed pass")
        with run_folder.beginning(folder, arguments), progress("detect") as callback:
            rows = interpretation.detection_table(
                model, train, test, epsilon=epsilon, seen=arguments.attack, unseen=unseen, find=find,
                per_class=(arguments.per_class,), classifiers=(arguments.classifier,), seed=arguments.seed,
                folder=parts, progress=callback,
            )  # fmt: skip
        size, kept = find["batch_size"], parts / "fit"
        moved = protocol.attacked(model, chosen, arguments.attack, epsilon, arguments.seed, at_once=size, folder=kept)
        clean, bad = (Batch(x, chosen.labels, chosen.index) for x in (protocol.rounded(chosen), moved))

        def fitted(features: str) -> RouteDetector:
            extract = baselines.extractor(model, features, find, parts)
            detector = interpretation.RouteDetector(
                arguments.classifier, seed=arguments.seed, false_positive_rate=arguments.rate
            )
            return detector.fit(extract(clean, "fit-clean"), extract(bad, f"fit-{arguments.attack}"), network=model)

        best = arguments.features == "best"
        detectors = {name: fitted(name) for name in (protocol.FEATURES if best else [arguments.features])}
        features = detect_report.best_fit(detectors)
    except KeyboardInterrupt:
        raise run_folder.Interrupted("detect", folder, "what was found so far is kept") from None
    detector = detectors[features]
    notes = detect_report.warnings(rows, features, chosen=best)
    detector.save(folder / DETECTOR)
    detect_report.section(rows, epsilon, notes).save(folder, "48-detector")
    terminal.table(*detect_report.table(rows))
    for note in notes:
        terminal.complain("warning", note)
    own = next(row for row in rows if row.features == features and row.seen)
    headline = {
        "AUROC, seen attack": round(own.report.auroc, 3),
        "95 % interval": f"{own.report.auroc_low:.3f} to {own.report.auroc_high:.3f}",
        "score above which an input is called adversarial": round(detector.threshold_, 4),
        "training images": len(chosen.labels),
    }
    summary = {"title": f"Detector on {features} of {arguments.model}", "headline": headline, "notes": notes}
    if best:
        summary["lead"] = [f"Of all features, {features} told the images it is fitted on and their attacks apart best."]
    result = run_folder.conclude(folder, summary, detector=folder / DETECTOR)
    shutil.rmtree(parts)
    return result


def _few(arguments: Arguments, model: nn.Module, split: ImageSplit) -> ImageSplit:
    """Return the images to fit on: of every class, known or else predicted, as many as asked for."""
    from convsmith.interpretation.protocol import balanced
    from convsmith.training import predict_split

    labels, unknown = split.labels, split.labels < 0
    if bool(unknown.any()):
        terminal.say("no labels: the network's own predictions take their place")
        with progress("predict") as callback:
            logits, _, _ = predict_split(model, split, 64, next(model.parameters()).device, progress=callback)
        labels = labels.where(~unknown, logits.argmax(1).cpu())
    return split.subset(balanced(labels, arguments.per_class, arguments.seed, fewer=bool(unknown.any())))


def _score(arguments: Arguments) -> dict[str, Any]:
    import torch

    from convsmith import interpretation
    from convsmith.cli.verbs.explain import images_of
    from convsmith.data import image_files
    from convsmith.interpretation.protocol import rounded

    if arguments.detector is None:
        raise InvalidArgument("scoring needs a fitted detector", argument="detect score", hint="add --detector FILE")
    if bool(arguments.image_files) == bool(arguments.data):
        raise InvalidArgument("score either IMAGEs or --data DATA", argument="detect score")
    out = run_folder.table_file(arguments)
    image_files(arguments.image_files)  # a missing one is named before any network is looked for
    path = Path(arguments.detector)
    detector = interpretation.RouteDetector.load(path / DETECTOR if path.is_dir() else path)
    model, about, data = _network_and_data(arguments)
    found = images_of(arguments, about, data, "test", 0)
    unknown = torch.full((len(found.images),), -1)
    # as in fitting: the values a stored image can have
    images = rounded(interpretation.Images(found.images, unknown, unknown, about.mean, about.std))
    detector.check_network(model, images)
    with progress(FEATURES.get(detector.settings_["mode"], "routes")) as callback:
        routes = _features(detector, model, images, callback)
    scores = detector.score(routes)
    flagged = scores > detector.threshold_
    values = [float(score) for score in scores]
    rows = [[n, s, "adversarial" if f else "clean"] for n, s, f in zip(found.names, values, flagged, strict=True)]
    terminal.table(["image", "score", f"above {detector.threshold_:.3f}"], rows[:SHOWN])
    return {
        "out": run_folder.write_table(out, ("image", "score", "verdict"), rows, shown=SHOWN),
        "threshold": detector.threshold_,
        "flagged": int(flagged.sum()),
        "images": len(rows),
        "scores": {name: round(score, 6) for name, score in zip(found.names, values, strict=True)},
    }


def _features(detector: RouteDetector, model: nn.Module, images: Tensor, callback: Any) -> Routes:
    """Return what the detector looks at, found as for its fit."""
    from convsmith import interpretation

    settings = detector.settings_
    if settings["mode"] in FEATURES:
        return interpretation.baseline_features(
            model, images, FEATURES[settings["mode"]], sites=settings.get("sites", "auto")
        )
    known = {field.name for field in fields(interpretation.RouteSettings)}
    return interpretation.find_routes(
        model,
        images,
        layers=None if detector.layers else list(detector.widths_),  # routes of all layers, looked at in some
        sites="auto" if settings["sites"] == "named" else settings["sites"],
        progress=callback,
        **{name: value for name, value in settings.items() if name in known},
    )


def _network_and_data(arguments: Arguments) -> tuple[nn.Module, DataDescription, ImageData | None]:
    model, about, data = data_options.load_with_network(arguments)
    if data is not None:
        classifier.check_takes(model, data.test if len(data.test) else data.train)
    return model, about, data


def _images(split: ImageSplit, data: ImageData) -> Images:
    from convsmith.interpretation import Images

    batch, about = split.fetch(slice(None)), data.description
    return Images(batch.images, batch.labels, batch.index, about.mean, about.std)
