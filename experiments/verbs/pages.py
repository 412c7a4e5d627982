"""``python -m experiments pages``: write the generated pages under docs/ from the JSON under results/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convsmith.cli.shell import terminal
from convsmith.cli.shell.options import Listing, option

EXAMPLES = ("pages",)

#: folder under ``docs/``: the title of its chapter
CHAPTERS = {
    "guides": "Guides by job",
    "inspection": "Looking at a network",
    "compression": "Leaner: compression",
    "pooling": "Sharper: global pooling",
    "interpretation": "Explainable: routes",
    "adaptation": "Portable: partial domain adaptation",
    "models": "Networks",
    "data": "Data",
    "training": "Training",
}
#: page beside them: what it holds
PAGES = {
    "gallery.md": "Gallery: what the pages look like",
    "cli.md": "The command line",
    "results.md": "Results: every claim with its verdict",
    "benchmarks.md": "Benchmarks: every timing beside its baseline",
    "testing.md": "Conformance suites",
    "reliability.md": "Reliability: what fuzzed input and kills lead to",
    "decisions.md": "Decisions and their reasons",
}


@dataclass(frozen=True, kw_only=True)
class Arguments(Listing):
    """Write results, benchmarks and index of the documentation from the committed JSON."""

    root: str = option(".", "the project's folder", metavar="DIR")
    demo: str | None = option(None, "keep what this run of convsmith demo measured", metavar="RUN")


def index_page(docs: Path) -> str:
    """Return ``docs/index.md``: every page under its own first heading."""
    parts = ["# Documentation", *(f"- [{title}]({name})" for name, title in PAGES.items())]
    for folder, title in CHAPTERS.items():
        pages = sorted((docs / folder).glob("*.md"))
        if pages:
            parts += ["", f"## {title}", ""]
        for page in pages:
            heading = page.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            parts.append(f"- [{heading}]({folder}/{page.name})")
    return "\n".join([parts[0], "", *parts[1:]]) + "\n"


def write_pages(root: Path) -> list[Path]:
    """Write the results with their figures, the benchmarks, index and measured tables; return what was written."""
    from experiments.benchmarks.page import benchmark_page
    from experiments.method_pages import GUIDES, finished
    from experiments.readme import WORDS, measured, with_measured
    from experiments.studies.page import results_page

    docs = root / "docs"
    page, figures = results_page(root / "results" / "studies")
    texts = {"results.md": page, "benchmarks.md": benchmark_page(root / "results" / "benchmarks"), **figures}
    texts["index.md"] = index_page(docs)
    for path in (path for folder in GUIDES for path in sorted((docs / folder).glob("*.md"))):
        texts[path.relative_to(docs).as_posix()] = finished(path, docs, page)
    for name, text in texts.items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for name, words in WORDS.items():
        path = root / name
        path.write_text(
            with_measured(path.read_text(encoding="utf-8"), measured(root / "results", words)), encoding="utf-8"
        )
    return [*(docs / name for name in texts), *(root / name for name in WORDS)]


def run(arguments: Arguments) -> dict[str, Any]:
    """Write the pages and name them."""
    if arguments.demo is not None:
        from experiments.readme import keep_demo

        keep_demo(Path(arguments.demo), Path(arguments.root) / "results")
    written = [str(path) for path in write_pages(Path(arguments.root))]
    terminal.say(*written)
    return {"written": written}
