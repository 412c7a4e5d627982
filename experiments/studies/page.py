"""``docs/results.md`` and an HTML page from the JSON under ``results/studies``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convsmith.report import Figure, Section, Table, render
from experiments.markdown import GENERATED, conditions_line, standalone, table
from experiments.studies.beside import BESIDE


def finished(results: Path, quick: bool | None = None) -> list[dict[str, Any]]:
    """Return the results of finished studies by name; of a study's forms the full one, unless ``quick`` names one."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(results.glob("*.json")):
        value = json.loads(path.read_text())
        if quick is not None and value["quick"] != quick:
            continue
        if value["study"] not in found or found[value["study"]]["quick"]:
            found[value["study"]] = value
    return [found[name] for name in sorted(found)]


def _protocol(value: dict[str, Any]) -> str:
    form = "quick form" if value["quick"] else "full form"
    return (
        f"{form}, data: {value['data']}, seeds {', '.join(map(str, value['seeds']))}, "
        f"{value['seconds']:.0f} s of computing; {conditions_line(value['conditions'])}"
    )


def beside(value: dict[str, Any], values: list[dict[str, Any]]) -> list[str]:
    """Return what stands beside a verdict: digit twin, published numbers, advice; nothing for a study without them."""
    found = BESIDE.get(value["study"])
    if found is None:
        return []
    known = {v["study"]: f"{v['verdict']}; {v['summary']}" for v in values}
    twins = " ".join(f"`{twin}`: {known.get(twin, 'not run.')}" for twin in found.twins)
    lines = [f"**Beside it.** On digits, {twins} Published: {found.published}"]
    return lines + ([f"**In practice.** {found.practice}"] if found.practice else [])


def overview(values: list[dict[str, Any]]) -> Table:
    """Return the table of all verdicts."""
    rows = [[v["study"], v["claim"], v["verdict"], v["summary"]] for v in values]
    return Table(["study", "claim", "verdict", "what was measured"], rows)


def results_page(results: Path) -> tuple[str, dict[str, str]]:
    """Return the Markdown page and its figures by file name (relative to ``docs/``)."""
    values = finished(results)
    summary = overview(values)
    hours = {v["study"]: v["seconds"] / 3600 for v in values}
    large = sum(own for name, own in hours.items() if name in BESIDE)
    parts = [
        "# Results",
        GENERATED,
        "Every study states its claim and the rule of its verdict before it runs. All arms of a comparison get the "
        "same recipe, data order and number of updates. Intervals are 95 % Student intervals over seeds unless a table "
        "says otherwise. A negative verdict is a result. Computing in all: "
        f"{sum(hours.values()):.1f} hours on one core, {large:.1f} of them for the studies that stand beside a twin on "
        "digits: processor time in the newest results, elapsed time on a shared machine in the others.",
        table(summary.columns, summary.rows),
    ]
    files: dict[str, str] = {}
    for value in values:
        parts += [
            f"## {value['study']}",
            f"**Claim.** {value['claim']} ({value['source']})",
            f"**Rule.** {value['rule']}",
            f"**Verdict: {value['verdict']}.** {value['summary']}",
        ]
        parts += beside(value, values)
        parts += [table(t["columns"], t["rows"], t["caption"]) for t in value["tables"]]
        for number, drawn in enumerate(value["figures"], 1):
            name = f"figures/{value['study'].replace('/', '-')}-{number}.svg"
            files[name] = standalone(drawn["svg"])
            parts.append(f"![{drawn['alt']}]({name})\n\n*{drawn['caption']}*")
        parts += [f"> {note}" for note in value["notes"]]
        parts.append(f"<sub>{_protocol(value)}</sub>")
    return "\n\n".join(parts) + "\n", files


def results_html(values: list[dict[str, Any]]) -> str:
    """Return the same results as one self-contained HTML page."""
    sections = [Section("Verdicts", tables=[overview(values)])]
    for value in values:
        text = [
            f"Claim: {value['claim']} ({value['source']})",
            f"Rule: {value['rule']}",
            f"Verdict: {value['verdict']}. {value['summary']}",
            _protocol(value),
        ]
        sections.append(
            Section(
                value["study"],
                text,
                [Table(**t) for t in value["tables"]],
                [Figure(svg=f["svg"], caption=f["caption"], alt=f["alt"]) for f in value["figures"]],
                notes=value["notes"],
            )
        )
    return render("convsmith: results of the studies", [], [], sections)
