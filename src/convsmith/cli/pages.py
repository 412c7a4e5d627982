"""``make docs``: write the generated pages under ``docs/`` from the JSON under ``results/``."""

from __future__ import annotations

from pathlib import Path


def write_pages(root: Path) -> list[Path]:
    """Write ``docs/results.md`` with its figures and ``docs/benchmarks.md``; return what was written."""
    from convsmith.benchmarks.page import benchmark_page
    from convsmith.studies.page import results_page

    docs = root / "docs"
    page, figures = results_page(root / "results" / "studies")
    texts = {"results.md": page, "benchmarks.md": benchmark_page(root / "results" / "benchmarks"), **figures}
    for name, text in texts.items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [docs / name for name in texts]


if __name__ == "__main__":
    for written in write_pages(Path.cwd()):
        print(written)
