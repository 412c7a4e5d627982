"""Checkpoints that a kill at any moment cannot spoil.

A checkpoint is a folder ``checkpoints/step-00000123`` with three files: ``weights.safetensors`` (the task's state),
``state.pt`` (optimizer, weight average, random states; plain tensors and numbers, read with ``weights_only=True``) and
``checkpoint.json`` (configuration, position, best metric). It is written under another name, forced to disk and then
renamed, so a folder with this name is complete. The latest one knows which step was the best so far.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convsmith.errors import InvalidArgument, RunFailed, differing_tensors, refusing
from convsmith.files import read_json

FORMAT = 1
_NAME = re.compile(r"step-(\d{8})$")


@dataclass(frozen=True)
class Position:
    """Where a run stands: updates done, the data position that follows from them, and the best evaluation so far."""

    step: int
    epoch: int
    batch: int
    best_step: int | None = None
    best_value: float | None = None
    stale: int = 0
    seconds: float = 0.0
    complete: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint in memory. ``state`` holds only tensors, numbers, strings, lists, tuples and dictionaries."""

    position: Position
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    state: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


def folder(run: Path) -> Path:
    """Return where a run keeps its checkpoints."""
    return run / "checkpoints"


def saved_steps(run: Path) -> list[int]:
    """Return the steps of all complete checkpoints of a run, ascending."""
    place = folder(run)
    if not place.is_dir():
        return []
    found = (_NAME.match(p.name) for p in place.iterdir() if p.is_dir())
    return sorted(int(m.group(1)) for m in found if m)


def path_of(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint after ``step`` updates."""
    return folder(run) / f"step-{step:08d}"


def save(run: Path, checkpoint: Checkpoint, *, keep_last: int) -> Path:
    """Write a checkpoint, then remove all but the last ``keep_last`` and the best.

    Raises:
        RunFailed: the disk refuses; earlier checkpoints stay.
    """
    place, final = folder(run), path_of(run, checkpoint.position.step)
    if final.exists():  # resumed here and interrupted again before a step was done: the same state, already complete
        return final
    try:
        place.mkdir(parents=True, exist_ok=True)
        draft = place / f".writing-{checkpoint.position.step:08d}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in checkpoint.weights.items()},
            draft / "weights.safetensors",
        )
        torch.save(dict(checkpoint.state), draft / "state.pt")
        about = {
            "format": FORMAT,
            "position": asdict(checkpoint.position),
            "config": dict(checkpoint.config),
            "facts": dict(checkpoint.facts),
        }
        (draft / "checkpoint.json").write_text(json.dumps(about, indent=1))
        mode = (draft / "checkpoint.json").stat().st_mode
        for file in draft.iterdir():
            file.chmod(mode)  # safetensors makes private files, whatever the umask
            _to_disk(file)
        _to_disk(draft)
        draft.rename(final)
        _to_disk(place)
        _prune(run, keep_last, checkpoint.position.best_step)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save and safetensors have errors of their own
        rule = "the checkpoint could not be written; earlier ones are kept"
        hint = "make room or permit writing, then continue with --resume"
        raise RunFailed(rule, argument=str(final), given=str(error), hint=hint) from error
    return final


def load(run: Path, step: int | None = None) -> Checkpoint:
    """Read a checkpoint, the latest one unless ``step`` is given.

    Raises:
        InvalidArgument: no checkpoint there, a damaged one, or one of another format.
    """
    steps = saved_steps(run)
    if not steps or (step is not None and step not in steps):
        argument = f"resume {run}" + ("" if step is None else f" at step {step}")
        given = f"checkpoints at steps {steps}" if steps else "a folder without checkpoints"
        hint = "name the folder of an earlier run, or start one without --resume"
        raise InvalidArgument("there is no checkpoint to continue from", argument=argument, given=given, hint=hint)
    place = path_of(run, steps[-1] if step is None else step)
    fields = {"format": int, "position": dict, "config": dict, "facts": dict}
    about = read_json(place / "checkpoint.json", "a checkpoint", fields)
    if about["format"] != FORMAT:
        rule = f"this version reads checkpoint format {FORMAT}"
        hint = "read it with the convsmith version named in environment.json"
        raise InvalidArgument(rule, argument=str(place), given=f"format {about['format']}", hint=hint)
    errors = (OSError, EOFError, RuntimeError, TypeError, SafetensorError, UnpicklingError)
    hint = "remove this folder to continue from the checkpoint before it"
    with refusing("the checkpoint is damaged", *errors, argument=str(place), hint=hint):
        return Checkpoint(
            position=Position(**about["position"]),
            config=about["config"],
            weights=load_file(place / "weights.safetensors"),
            state=torch.load(place / "state.pt", map_location="cpu", weights_only=True),
            facts=about["facts"],
        )


def refuse_broken(module: nn.Module, step: int) -> None:
    """Raise `RunFailed` if a trained parameter is not finite: such weights are never written over good ones."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            rule = "the weights are no longer finite; the last good checkpoint is kept"
            hint = "lower the learning rate, clip gradients, or use fp32"
            raise RunFailed(rule, argument=f"a checkpoint at step {step}", given=name, hint=hint)


def refuse_other_run(loaded: Checkpoint, now: Mapping[str, Any], *, free: Collection[str], source: str) -> None:
    """Raise `InvalidArgument` if a checkpoint's settings and data differ from those of ``now`` outside ``free``."""
    then = {**loaded.config, **loaded.facts}
    differing = [
        f"{k}: {then[k]!r} then, {now[k]!r} now" for k in now if k not in free and k in then and then[k] != now[k]
    ]
    if differing:
        rule = "a run continues only with the settings and data it began with"
        hint = "give the same settings, or start a new run from these weights"
        raise InvalidArgument(rule, argument=f"resume {source}", given="; ".join(differing), hint=hint)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict strictly.

    Raises:
        InvalidArgument: the weights belong to another model; names the first tensors that differ.
    """
    differing = differing_tensors(module.state_dict(), weights)
    if differing:
        argument = f"load {source} into {type(module).__name__}"
        hint = "build the model with the same name and arguments that the weights were saved with"
        raise InvalidArgument("these weights belong to another model", argument=argument, given=differing, hint=hint)
    module.load_state_dict(dict(weights))


def _prune(run: Path, keep_last: int, best: int | None) -> None:
    for step in saved_steps(run)[:-keep_last]:
        if step != best:
            # renamed first: a kill in the middle of a removal must not leave half a folder under a good name
            doomed = folder(run) / f".removing-{step:08d}"
            path_of(run, step).rename(doomed)
            shutil.rmtree(doomed)
    for pattern in (".removing-*", ".writing-*"):
        for leftover in folder(run).glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
