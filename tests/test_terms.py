"""Public names and flags use the field's words: a name that was given up does not come back."""

import dataclasses
import importlib
import inspect
import re

import pytest

from convsmith.cli import main

ROOMS = ("adaptation", "compression", "data", "inspection", "interpretation", "models", "pooling", "report", "training")
#: given up -> what it is called now
GIVEN_UP = {
    "look": "extract_features",
    "seen": "DomainFeatures",
    "examiner": "Evaluator",
    "examine": "evaluate",
    "judge": "compute_metrics",
    "survey": "LayerInventory",
    "damage": "sensitivity",
    "refused": "skipped",
    "repair": "finetune",
    "settled": "converged",
    "wiring": "ChainSpec",
    "sides": "IntOrPair",
    "entering": "in_sizes",
    "leaving": "out_sizes",
    "asked": "argument",
    "mend": "hint",
    "probe": "infer_channels",
    "rebuild": "restore_structure",
    "recipes": "compression_history",
    "evaluations": "num_evals",
    "reader": "feature_fn",
    "picture": "image",
    "pictures": "images",
}
#: the same letters in another meaning: attacks seen in training, the probe of linear probing
OTHER = {"linear_probe", "seen_through", "DetectionRow(seen)", "detection_table(seen)"}


def words(name):
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def public_names(module):
    for name in getattr(module, "__all__", ()):
        yield name
        thing = getattr(module, name)
        if callable(thing):
            with_arguments = [thing]
            if inspect.isclass(thing):
                members = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
                yield from (f"{name}.{key}" for key in members)
                with_arguments += [value for value in members.values() if inspect.isfunction(value)]
            for one in with_arguments:
                try:
                    yield from (f"{name}({argument})" for argument in inspect.signature(one).parameters)
                except (TypeError, ValueError):
                    continue


@pytest.mark.parametrize("room", ROOMS)
def test_no_public_name_uses_a_word_that_was_given_up(room):
    found = {}
    for name in public_names(importlib.import_module(f"convsmith.{room}")):
        last = re.split(r"[.(]", name)[-1].rstrip(")")
        for word in words(last) & set(GIVEN_UP):
            if not {name, last} & OTHER:
                found[name] = f"{word}: now {GIVEN_UP[word]}"
    assert not found


@pytest.mark.parametrize("verb", sorted(main.Program().verbs()))
def test_no_flag_uses_a_word_that_was_given_up(verb):
    arguments = importlib.import_module(f"convsmith.cli.verbs.{verb}").Arguments
    flags = {field.name for field in dataclasses.fields(arguments)} - OTHER
    assert flags
    assert not {flag for flag in flags if words(flag) & set(GIVEN_UP)}
