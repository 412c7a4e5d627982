"""Find settings without target labels: a grid, seeds, successive halving by a validator, resumable.

Jamieson & Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS 2016, algorithm 1.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from convsmith.adaptation.adapt import adapt
from convsmith.adaptation.evaluation.evaluator import EXCLUDED
from convsmith.adaptation.evaluation.validators import VALIDATORS
from convsmith.adaptation.methods.method import method_settings, source_only_settings
from convsmith.adaptation.result import AdaptationResult
from convsmith.arguments import spelled
from convsmith.errors import InvalidArgument, refusing
from convsmith.files import whole_lines
from convsmith.registry import setting_types


@dataclass(frozen=True)
class Trial:
    """One setting at one budget: ``scores`` by seed, higher is better, `EXCLUDED` where the guard dropped the run.

    ``oracle``: accuracies by seed where target labels were asked for; only the validator ``"oracle"`` selects by them.
    """

    settings: Mapping[str, Any]
    steps: int
    scores: tuple[float, ...]
    oracle: tuple[float, ...] = ()

    @property
    def score(self) -> float:
        """The mean over seeds."""
        return math.fsum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class SearchResult:
    """``best`` is the winner of the last rung; ``trials`` are all that ran, rung by rung; ``validator`` judged them."""

    best: Trial
    trials: tuple[Trial, ...]
    validator: str


def grid(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of ``values``, the last name varying fastest."""
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def rungs(candidates: int, steps: int, keep: float) -> list[tuple[int, int]]:
    """Return (candidates, steps) of every rung: each keeps a share ``keep`` and trains ``1/keep`` times longer.

    The last rung trains ``steps`` and holds what is left, two candidates or more if there were two.
    """
    counts = [candidates]
    while counts[-1] > max(2, math.ceil(1 / keep)):
        counts.append(max(2, math.ceil(counts[-1] * keep)))
    return [(n, max(10, round(steps * keep ** (len(counts) - 1 - i)))) for i, n in enumerate(counts)]


def search(
    model: Any,
    source: Any,
    target: Any,
    *,
    method: str,
    values: Mapping[str, Sequence[Any]],
    validator: str = "infomax",
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 1000,
    keep: float = 1 / 3,
    out: Path | str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **common: Any,
) -> SearchResult:
    """Try every combination of ``values`` on every seed, and train the better ones longer.

    Args:
        model: see `adapt`.
        source: see `adapt`.
        target: see `adapt`.
        method: see `adapt`.
        values: candidates by setting name.
        validator: judges the last step of every run; `oracle` needs ``use_target_labels=True``.
        seeds: a candidate's score is the mean over these.
        steps: of the last rung.
        keep: share of candidates that goes on to the next rung.
        out: file of finished runs, one JSON line each; a search that was stopped reads it and goes on. Networks and
            images that are given, not named, are told apart by their kind and size alone.
        progress: called with runs done, runs in all and a note.
        common: further arguments of `adapt`.

    The source-only reference is trained once per seed and rung, and serves all candidates.
    """
    VALIDATORS.entry(validator)
    candidates = grid(values)
    if not candidates or not seeds or not 0 < keep < 1:
        rule = "a search needs candidates, seeds and a share to keep in (0, 1)"
        raise InvalidArgument(rule, given=f"{len(candidates)} candidates, {len(seeds)} seeds, keep={keep}")
    for settings in candidates:
        method_settings(method, settings)
    plan = rungs(len(candidates), steps, keep)
    total = sum(n * len(seeds) for n, _ in plan)
    # source-only takes what adapt itself takes, not the settings of the method beyond those that all share
    default = method_settings(method, {})
    names = {*setting_types(default), *(f.name for f in fields(default))}
    own = dict(common)
    given = {name: own.pop(name) for name in names & own.keys()}
    own["settings"] = source_only_settings(method_settings(method, given, common.get("settings")))
    conditions = {"method": method, "validator": validator, "common": {k: str(v) for k, v in common.items()}}
    conditions |= {"inputs": [str(i) if isinstance(i, str | Path) else spelled(i) for i in (model, source, target)]}
    out = None if out is None else Path(out)
    finished = {} if out is None else _finished(out)
    trials: list[Trial] = []
    done = 0
    for count, budget in plan:
        chosen = candidates[:count]
        references: dict[int, AdaptationResult] = {}
        rung = []
        for settings in chosen:
            scores, oracle = [], []
            for seed in seeds:
                key = json.dumps([conditions, settings, budget, seed], sort_keys=True, default=str)
                if key not in finished:
                    run = partial(adapt, model, source, target, steps=budget, seed=seed)
                    if method != "source-only" and seed not in references:
                        references[seed] = _whole(run(method="source-only", **{**own, "reference": None}))
                    rest = {**common, "reference": references.get(seed), **settings}
                    measured = _whole(run(method=method, validator=validator, **rest)).measurements
                    finished[key] = (measured["selection"], measured.get("oracle_accuracy"))
                    if out is not None:
                        _append(out, key, *finished[key])
                score, accuracy = finished[key]
                scores.append(score)
                oracle += [] if accuracy is None else [accuracy]
                done += 1
                if progress is not None:
                    progress(done, total, f"{settings} at {budget} steps")
            rung.append(Trial(settings, budget, tuple(scores), tuple(oracle)))
        trials += rung
        candidates = [dict(t.settings) for t in sorted(rung, key=lambda t: -t.score)]
    best = max(trials[-plan[-1][0] :], key=lambda t: t.score)
    if best.score <= EXCLUDED:
        rule = "no candidate passed the guard on any seed"
        raise InvalidArgument(rule, argument=method, given=f"{len(trials)} trials")
    return SearchResult(best, tuple(trials), validator)


def _whole(result: AdaptationResult) -> AdaptationResult:
    """Return a run that went to its end; a signal that ended one ends the search, and its score is no score."""
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def _finished(path: Path) -> dict[str, tuple[float, float | None]]:
    """Return score and oracle accuracy of the runs in a file, by what they were."""
    found = {}
    for number, line in enumerate(whole_lines(path), 1):
        hint = "take the line out, or name another file"
        rule, argument = "a file of finished runs holds one JSON object a line", f"{path}, line {number}"
        with refusing(rule, ValueError, TypeError, KeyError, argument=argument, hint=hint):
            row = json.loads(line)
            found[row["key"]] = (float(row["found"]["score"]), row["found"]["oracle"])
    return found


def _append(path: Path, key: str, score: float, oracle: float | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"key": key, "found": {"score": score, "oracle": oracle}}) + "\n")
