"""``make docs``: write the generated pages under ``docs/`` from the JSON under ``results/``."""

from __future__ import annotations

from pathlib import Path

#: folder under ``docs/``: the title of its chapter
CHAPTERS = {
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
    "cli.md": "The command line",
    "results.md": "Results: every claim with its verdict",
    "benchmarks.md": "Benchmarks: every timing beside its baseline",
    "decisions.md": "Decisions and their reasons",
}


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
    """Write ``docs/results.md`` with its figures and ``docs/benchmarks.md``; return what was written."""
    from convsmith.benchmarks.page import benchmark_page
    from convsmith.studies.page import results_page

    docs = root / "docs"
    page, figures = results_page(root / "results" / "studies")
    texts = {"results.md": page, "benchmarks.md": benchmark_page(root / "results" / "benchmarks"), **figures}
    texts["index.md"] = index_page(docs)
    for name, text in texts.items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [docs / name for name in texts]


if __name__ == "__main__":
    for written in write_pages(Path.cwd()):
        print(written)
