"""What mkdocs asks while it builds the documentation: the order of the pages, and one reference page a room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.verbs.pages import CHAPTERS, PAGES

#: rooms whose public names get a reference page
ROOMS = (
    "inspection",
    "compression",
    "pooling",
    "interpretation",
    "adaptation",
    "models",
    "data",
    "training",
    "report",
    "testing",
)


APART = ("cli.md", "gallery.md", "testing.md", "reliability.md", "decisions.md")


def titled(page: Path) -> str:
    """Return the first heading of a page."""
    return page.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def on_config(config: Any) -> Any:
    """Lay the pages out: start, guides, methods by pillar, results, reference, development."""
    docs = Path(config["docs_dir"])

    def chapter(folder: str) -> list[dict[str, str]]:
        return [{titled(page): f"{folder}/{page.name}"} for page in sorted((docs / folder).glob("*.md"))]

    config["nav"] = [
        {"Start": "index.md"},
        {"Guides": [*chapter("guides"), {"Gallery": "gallery.md"}]},
        {"Methods": [{title: chapter(folder)} for folder, title in CHAPTERS.items() if folder != "guides"]},
        {"Results": [{title: name} for name, title in PAGES.items() if name not in APART]},
        {"Reference": [{"The command line": "cli.md"}, *({room: f"reference/{room}.md"} for room in ROOMS)]},
        {
            "Development": [
                {"The house, and three walks through it": "contributing.md"},
                {"Conformance suites": "testing.md"},
                {"Reliability": "reliability.md"},
                {"Decisions and their reasons": "decisions.md"},
            ]
        },
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the reference pages and the developers' page, which have no file under docs/."""
    from mkdocs.structure.files import File

    source = Path(config["docs_dir"]).parent / "src" / "convsmith"
    for room in ROOMS:
        text = f"# convsmith.{room}\n\n::: convsmith.{room}\n    options:\n      show_root_heading: false\n"
        exported = (source / room / "__init__.py").read_text(encoding="utf-8")
        for file in sorted((source / room).glob("*.py")):
            # a function named like its file hides behind the file in static analysis; suites are found by a loop
            if f'"{file.stem}",' in exported or file.stem.startswith("check_"):
                text += f"\n::: convsmith.{room}.{file.stem}.{file.stem}\n"
        files.append(File.generated(config, f"reference/{room}.md", content=text))
    walks = (source.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "contributing.md", content=walks))
    return files
