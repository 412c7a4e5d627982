"""``convsmith audit``: what the four pillars can do for a network of yours, on one page, in minutes."""

from __future__ import annotations

import importlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from convsmith.cli.shell import classifier, run_folder, terminal
from convsmith.cli.shell.options import Work, option
from convsmith.cli.shell.progress import progress
from convsmith.errors import ConvsmithError, InvalidArgument, RunFailed
from convsmith.files import read_json

if TYPE_CHECKING:
    from convsmith.cli.reports.audit_subject import Chapter, Subject
    from convsmith.models.storage import LoadedModel

EXAMPLES = (
    "audit runs/first --data digits --target mnist-5k --out runs/audit",
    "audit resnet50 --data photos/ --target phone/ --minutes 10",
    "audit tf_efficientnet_lite0 --weights lite0.pth --data photos/ --runtime onnxruntime --json",
    "audit --out runs/audit --resume",
)
#: the chapters in the order of the page
CHAPTERS = ("explainable", "leaner", "sharper", "guarded", "portable")
#: the order they run in, each with its weight: what the quick ones leave of the time goes to the others
WEIGHTS = {"sharper": 3, "portable": 3, "leaner": 6, "guarded": 2, "explainable": 3}
#: what the file of a chapter holds
FIELDS: dict[str, Any] = dict.fromkeys(("sentence", "number", "command", "absent"), str)
FIELDS |= {"facts": dict, "seconds": (int, float)}
#: images that are looked at, of DATA and of TARGET
PICTURES, LABELLED = 64, 240


@dataclass(frozen=True, kw_only=True)
class Arguments(Work):
    """Say what convsmith can do for a network: leaner, sharper, explainable, guarded, portable, one page in minutes."""

    model: str | None = option(
        None, "timm name, run folder, weights file or package.module:factory", metavar="MODEL", positional=True
    )
    data: str | None = option(None, "images it works on: a folder (class folders are labels) or DATA", metavar="DATA")
    target: str | None = option(None, "images of another domain, for the chapter on it", metavar="DATA")
    weights: str | None = option(None, "file with the network's weights", metavar="FILE")
    random: bool = option(False, "do not look for published weights: audit the untrained network")
    runtime: str = option("onnxruntime", "runtime of the timing: onnxruntime, compile or torch", metavar="NAME")
    minutes: float = option(5.0, "time to use; chapters look at less where it is short", metavar="N", above=0, most=1e6)


def run(arguments: Arguments) -> dict[str, Any]:
    """Load network and images, write the chapters one by one, then the page."""
    began = time.monotonic()
    if arguments.model is None or arguments.data is None:
        missing = ["MODEL"] * (arguments.model is None) + ["--data DATA"] * (arguments.data is None)
        hint = f"add {' and '.join(missing)}"
        raise InvalidArgument("an audit needs a network and images", argument="audit", hint=hint)
    from convsmith.compression.runtimes import check_runtime

    check_runtime(arguments.runtime)
    run_folder.check("audit", arguments)
    from convsmith.cli.reports.audit_subject import Subject, in_turn, read_images
    from convsmith.training import resolve_device

    device = str(resolve_device(arguments.device))
    # first: a wrong path waits for no weights
    data, notes = read_images(arguments.data, most=LABELLED, seed=arguments.seed)
    target = None
    if arguments.target is not None:
        target, more = read_images(arguments.target, most=LABELLED, seed=arguments.seed)
        notes += more
    loaded = load(arguments, device)
    network, images = quote(arguments.model), quote(arguments.data)
    weights = "" if arguments.weights is None else f" --weights {quote(arguments.weights)}"
    bare = not (weights or arguments.random or classifier.is_saved(arguments.model) or ":" in arguments.model)
    words = {
        "model": network + weights,
        "start": f"--model {network}" + (" --pretrained" if bare else weights),
        "data": images,
        "labelled": images if data.classes else "FOLDER_WITH_CLASSES",
        "target": quote(arguments.target or "TARGET"),
    }
    labelled = data if data.classes else None
    few = data.subset(in_turn(data.labels.tolist(), PICTURES, arguments.seed))
    subject = Subject(loaded, few, labelled, target, words, arguments.runtime, arguments.seed, device, notes=notes)
    folder = run_folder.open_run("audit", arguments)
    title = f"What convsmith can do for {arguments.model}"
    return audit(subject, folder, title=title, minutes=arguments.minutes, resume=arguments.resume, began=began)


def load(arguments: Arguments, device: str) -> LoadedModel:
    """Load MODEL with its weights."""
    from convsmith.models.recipes import check_name
    from convsmith.models.storage import load_model

    assert arguments.model is not None
    if arguments.random:
        if arguments.weights is not None:
            raise InvalidArgument("--random and --weights contradict each other", argument="--random --weights")
        return load_model(arguments.model, device=device)
    if not classifier.is_saved(arguments.model):
        check_name(arguments.model)
    try:
        return classifier.load(arguments.model, weights=arguments.weights, device=device)
    except InvalidArgument as error:
        if classifier.is_saved(arguments.model) or arguments.weights is not None:
            raise
        hint = "--weights FILE gives the weights; --random audits the untrained network"
        raise InvalidArgument(error.rule, argument=error.argument, given=error.given, hint=hint) from None


def audit(
    subject: Subject, folder: Path, *, title: str, minutes: float, resume: bool, began: float, verb: str = "audit"
) -> dict[str, Any]:
    """Write every chapter that is not there yet, then ``result.json`` and the page; return the summary.

    ``began``: reading of the monotonic clock from which ``minutes`` count; ``verb`` goes on after an interruption.

    Raises:
        RunFailed: a chapter broke, after the page with all others is written.
    """
    found: dict[str, dict[str, Any]] = {}
    broken: list[str] = []
    (folder / "audit").mkdir(exist_ok=True)
    left = dict(WEIGHTS)
    _ = subject.untrained  # answered once, before any chapter's time runs
    for name in WEIGHTS:
        known = folder / "audit" / f"{name}.json"
        seconds = (60 * minutes - (time.monotonic() - began)) * left[name] / sum(left.values())
        del left[name]
        if resume and known.is_file():
            found[name] = read_json(known, "a chapter of the audit", FIELDS)
        else:
            try:
                found[name] = _one(subject, folder, name, max(5.0, seconds), broken)
            except KeyboardInterrupt:
                done = f"stopped in {name}, chapter {len(found) + 1} of {len(CHAPTERS)}"
                raise run_folder.Interrupted(verb, folder, done) from None
        terminal.say(f"{name:<12} {_answer(found[name])}", "")
    return _conclude(subject, folder, title, {name: found[name] for name in CHAPTERS}, broken)


def _one(subject: Subject, folder: Path, name: str, seconds: float, broken: list[str]) -> dict[str, Any]:
    """Run one chapter within its time and write it."""
    from convsmith.cli.reports.audit_subject import Chapter
    from convsmith.report import Section

    module = importlib.import_module(f"convsmith.cli.reports.audit_{name}")
    began = time.monotonic()
    subject.deadline = began + seconds
    with progress(name) as callback:
        subject.report = callback
        try:
            chapter: Chapter = module.run(subject)
        except ConvsmithError as error:
            chapter = Chapter(absent=" ".join(f"{error.rule} {error.given or ''}".split()))
        except Exception as error:  # noqa: BLE001  (one chapter that breaks must not take the page with it)
            broken.append(name)
            chapter = Chapter(absent=f"it broke: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    took = round(time.monotonic() - began, 1)
    if subject.untrained and chapter.command:
        data = subject.words["labelled"]
        chapter = replace(chapter, command=f"convsmith train {subject.words['start']} --data {data}")
    section = chapter.section or Section(module.TITLE, [f"Not answered: {chapter.absent}."])
    section = replace(section, commands=[chapter.command] if chapter.command else [])
    section.save(folder, f"{CHAPTERS.index(name) + 1}0-{name}")
    values = asdict(replace(chapter, section=None)) | {"seconds": took}
    del values["section"]
    values = json.loads(json.dumps(values, default=float).replace("NaN", "null"))
    if name not in broken:
        run_folder.write_json(folder / "audit" / f"{name}.json", values)
    return values


def _conclude(
    subject: Subject, folder: Path, title: str, found: dict[str, dict[str, Any]], broken: list[str]
) -> dict[str, Any]:
    from convsmith.report import Section, Table

    subject.deadline, subject.report = float("inf"), None  # the page is written whatever the time
    notes = list(subject.loaded.notes)[:1] if any("new" in n for n in subject.loaded.notes) else []
    notes += subject.notes
    if subject.untrained:
        notes.append("This network seems to be untrained: it is as unsure of every image as it can be. Train it first.")
    seconds = sum(chapter["seconds"] for chapter in found.values())
    first = Section.load(folder / "sections" / "10-explainable.json")
    Section(
        "In short",
        tables=[Table(["chapter", "answer", "s"], [[n, _answer(c), round(c["seconds"])] for n, c in found.items()])],
        images=[replace(one, width=140) for one in list(first.images)[:6]],
        notes=notes,
    ).save(folder, "00-in-short")
    summary = {
        "title": title,
        "lead": [
            f"{len(subject.pictures)} images of {subject.pictures.description.source}"
            + (f", {len(subject.target)} of {subject.target.description.source}" if subject.target is not None else "")
            + f"; {seconds:.0f} s on this machine. Every number was measured by the run that wrote this page."
        ],
        "headline": {name: c["number"] or "not answered" for name, c in found.items()},
        "notes": notes,
        "chapters": found,
        "seconds": round(seconds, 1),
    }
    following: dict[str, list[str]] = {}
    for name, chapter in found.items():
        if chapter["command"]:
            following.setdefault(chapter["command"], []).append(name)
    terminal.say(*notes, *(f"next: {', '.join(names):<12} {command}" for command, names in following.items()))
    terminal.say("", f"done in {seconds:.0f} s")
    result = run_folder.conclude(folder, summary)
    if broken:
        rule, given = f"{' and '.join(broken)} broke; the page holds the other chapters", found[broken[0]]["absent"]
        raise RunFailed(rule, argument=str(folder), given=given, hint="go on with --resume after the cause is gone")
    return result


def _answer(chapter: dict[str, Any]) -> str:
    return chapter["sentence"] or f"not answered, {chapter['absent']}."
