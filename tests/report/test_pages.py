"""The generated pages say what the committed JSON says."""

import json
import re
from pathlib import Path

import pytest
from jsonschema import validate

from experiments.benchmarks.page import benchmark_page
from experiments.markdown import table
from experiments.method_pages import GUIDES, METHODS
from experiments.method_pages import finished as finished_page
from experiments.readme import WORDS, keep_demo, measured, with_measured
from experiments.studies import available
from experiments.studies.page import finished, results_html, results_page
from experiments.verbs.pages import CHAPTERS, PAGES, index_page

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "results" / "studies"
BENCHMARKS = ROOT / "results" / "benchmarks"
NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
CONDITIONS = {
    "type": "object",
    "required": ["created", "machine", "cpu", "device", "threads", "load", "versions", "commit"],
}
BENCHMARK = {
    "type": "object",
    "required": ["schema", "suite", "quick", "conditions", "cases", "notes"],
    "additionalProperties": False,
    "properties": {
        "schema": {"const": 1},
        "suite": {"type": "string"},
        "quick": {"type": "boolean"},
        "conditions": CONDITIONS,
        "notes": {"type": "array", "items": {"type": "string"}},
        "cases": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "baseline", "arms", "ratios", "settings", "aim"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string"},
                    "baseline": {"type": "string"},
                    "aim": {"type": "string"},
                    "settings": {"type": "object"},
                    "ratios": {"type": "object", "additionalProperties": NUMBERS},
                    "arms": {
                        "type": "object",
                        "additionalProperties": {
                            "type": "object",
                            "required": ["median", "q1", "q3", "calls", "peak_bytes"],
                            "properties": {"median": {"type": "number", "exclusiveMinimum": 0}},
                        },
                    },
                },
            },
        },
    },
}
STUDY = {
    "type": "object",
    "required": ["study", "claim", "source", "rule", "data", "verdict", "summary", "seeds", "conditions", "cells"],
    "properties": {
        "verdict": {"enum": ["reproduced", "partly", "not reproduced"]},
        "conditions": CONDITIONS,
        "seeds": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        "cells": {"type": "object"},
    },
}


def strict(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path.name} holds {name}"))


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.json")), ids=lambda p: p.stem)
def test_benchmark_json_keeps_the_schema_and_its_file_name(path):
    value = strict(path)
    validate(value, BENCHMARK)
    where = value["conditions"]
    assert path.stem.startswith(f"{value['suite']}--{where['machine']}--{where['device']}")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.json")), ids=lambda p: p.stem)
def test_study_json_keeps_the_schema_and_names_a_study_that_exists(path):
    value = strict(path)
    validate(value, STUDY)
    assert value["study"] in available()


def test_the_results_page_is_the_json():
    page, figures = results_page(STUDIES)
    assert (ROOT / "docs" / "results.md").read_text() == page, "run `make docs`"
    for name, text in figures.items():
        assert (ROOT / "docs" / name).read_text() == text, f"docs/{name} is stale: run `make docs`"


def test_the_benchmark_page_is_the_json():
    assert (ROOT / "docs" / "benchmarks.md").read_text() == benchmark_page(BENCHMARKS), "run `make docs`"


@pytest.mark.parametrize("name", WORDS)
def test_the_measured_table_is_the_json(name):
    text = (ROOT / name).read_text()
    assert text == with_measured(text, measured(ROOT / "results", WORDS[name])), "run `make docs`"


def test_a_demo_is_kept_with_its_conditions(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    where = {"machine": "2core-x86_64", "device": "cpu", "capability": "avx2"}
    (run / "environment.json").write_text(json.dumps(where))
    chapters = {"sharper": {"number": "+1 points", "facts": {"gain": 0.01}, "sentence": "s"}}
    (run / "result.json").write_text(json.dumps({"chapters": chapters}))
    kept = keep_demo(run, tmp_path)
    assert kept.name == "demo--2core-x86_64--cpu-avx2.json"
    assert json.loads(kept.read_text()) == {
        "conditions": where,
        "chapters": {"sharper": {"number": "+1 points", "gain": 0.01}},
    }


def test_the_html_page_holds_every_verdict():
    values = finished(STUDIES)
    text = results_html(values)
    for value in values:
        assert value["study"] in text


def test_tables_align_numbers_and_escape_bars():
    text = table(["a|b", "n"], [["x", 1.0], ["y", None]])
    assert text.splitlines() == ["| a\\|b | n |", "|---|---:|", "| x | 1 |", "| y | – |"]


def test_the_index_names_every_page():
    docs = ROOT / "docs"
    text = (docs / "index.md").read_text()
    assert text == index_page(docs), "run `make docs`"
    assert {p.name for p in docs.glob("*.md")} == {*PAGES, "index.md"}
    assert {p.name for p in docs.iterdir() if p.is_dir()} - {"figures"} <= set(CHAPTERS)
    for page in docs.rglob("*.md"):
        assert page.read_text().startswith("# "), f"{page} has no heading"


def test_links_between_pages_lead_somewhere():
    for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page} links to {link}"


def test_the_end_of_every_page_is_what_make_docs_writes():
    docs, results = ROOT / "docs", (ROOT / "docs" / "results.md").read_text()
    for folder in GUIDES:
        for path in (docs / folder).glob("*.md"):
            assert path.read_text() == finished_page(path, docs, results), f"{path}: run `make docs`"


def test_every_method_has_a_page_with_when_to_use_it_settings_and_measurements():
    from convsmith import adaptation, compression, pooling

    named = {name for names in METHODS.values() for name in names}
    everything = {*adaptation.available(), *compression.available(), *pooling.available()} - {"average"}
    assert named == everything
    for page in METHODS:
        text = (ROOT / "docs" / page).read_text()
        assert all(part in text for part in ("**When.**", "## Settings of `", "## Measured", "| ")), page


@pytest.mark.parametrize("page", ["routes", "heat", "detector", "ablation"])
def test_pages_on_explanations_say_when_to_use_them_and_when_not_by_settings_and_rows(page):
    text = (ROOT / "docs" / "interpretation" / f"{page}.md").read_text()
    studies = dict(re.findall(r"\[`(routing/[a-z-]+)`\]\(\.\./results\.md#([a-z-]+)\)", text))
    chapters = re.findall(r"^## (\S+)$", (ROOT / "docs" / "results.md").read_text(), re.MULTILINE)
    assert studies
    assert all(study in chapters and anchor == study.replace("/", "") for study, anchor in studies.items())
    for head in ("**When.**", "**When not.**"):
        (said,) = (part for part in text.split("\n\n") if part.startswith(head))
        assert "`" in said, f"{page}: {head} names no setting"
