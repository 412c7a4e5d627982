"""What ``make docs`` writes at the end of a page: a method's settings, its rows of the results, the way on."""

from __future__ import annotations

import re
from pathlib import Path

from convsmith.cli.verbs.methods import own_settings, registries
from experiments.markdown import table

MARK = "<!-- from here on written by `make docs` -->"
#: folder of pages: its guide
GUIDES = {
    "compression": "compress",
    "pooling": "train",
    "interpretation": "explain",
    "adaptation": "adapt",
    "models": "train",
    "data": "train",
    "training": "train",
    "inspection": "explain",
}
#: page: the methods that it is about
METHODS: dict[str, tuple[str, ...]] = {
    **{f"adaptation/{name}.md": (name,) for name in ("adda", "afn", "ar", "arpm", "ba3us", "cdan", "dan", "dann")},
    **{f"adaptation/{name}.md": (name,) for name in ("etn", "iwan", "pada")},
    "adaptation/source_only.md": ("source-only",),
    "adaptation/selective.md": ("san",),
    "compression/low_rank.md": ("low-rank",),
    "compression/interleave.md": ("interleave",),
    "compression/prune.md": ("prune-filters", "prune-channels"),
    "compression/sparse.md": ("sparse", "structured-sparse"),
    "compression/precision.md": ("int8", "ternary", "binary"),
    "pooling/isqrt.md": ("isqrt-cov",),
    "pooling/power.md": ("mpn-cov", "deep-o2p"),
    "pooling/gaussian.md": ("g2denet", "raid-g", "l2emg"),
    "pooling/bilinear.md": ("bilinear", "improved-bilinear", "compact-bilinear"),
    "pooling/later.md": ("dropcov", "bdc"),
}
#: folder: the studies with a row for each method, the words of their tables' captions, and the row beside it
MEASURED: dict[str, list[tuple[str, str, str | None]]] = {
    "adaptation": [("transfer/methods", "accuracy at the last step", "source-only")],
    "compression": [("redundancy/ways", "Shares of the original's", None)],
    "pooling": [("pooling/small-data", "Test accuracy after", "average")],
}
#: where a study calls a method otherwise
ROWS = {
    "low-rank": "low rank",
    "interleave": "interleaved",
    "prune-filters": "filters pruned",
    "prune-channels": "channels pruned",
    "sparse": "sparse",
    "structured-sparse": "2:4 sparse",
}


def finished(path: Path, docs: Path, results: str) -> str:
    """Return a page with its end written anew; ``results`` is the text of ``docs/results.md``."""
    text = path.read_text(encoding="utf-8").split(MARK)[0].rstrip()
    name = path.relative_to(docs).as_posix()
    parts = [text, "", MARK]
    for method in METHODS.get(name, ()):
        rows = _settings(method)
        told = table(["setting", "value", "default", "meaning"], rows) if rows else "It has none of its own."
        parts += ["", f"## Settings of `{method}`", "", told]
    measured = [
        part for study in MEASURED.get(path.parent.name, ()) for part in _rows(results, METHODS.get(name), *study)
    ]
    if measured:
        parts += ["", "## Measured", "", *measured]
    return "\n".join([*parts, "", _way_on(path, docs)]) + "\n"


def _settings(method: str) -> list[list[str]]:
    entry = next(registry.entry(method) for registry in registries().values() if method in registry)
    return [[f"`{name}`", *rest] for name, *rest in own_settings(entry)]


def _rows(results: str, methods: tuple[str, ...] | None, study: str, words: str, beside: str | None) -> list[str]:
    """Return the tables of a study whose caption holds ``words``, cut to the rows of the methods."""
    section = re.search(rf"^## {study}\n(.*?)(?=^## |\Z)", results, re.DOTALL | re.MULTILINE)
    if section is None or not methods:
        return []
    names = "|".join(re.escape(ROWS.get(name, name)) for name in (beside, *methods) if name)
    found: list[str] = []
    for caption, head, body in re.findall(r"^\*(.*?)\*\n\n(\|.*\n\|.*\n)((?:\|.*\n)+)", section.group(1), re.MULTILINE):
        rows = [row for row in body.splitlines() if re.match(rf"\| ({names})[ ,]", row)]
        if words in caption and rows:
            found += [caption, "", head + "\n".join(rows), ""]
    return [*found, f"From study [`{study}`](../results.md#{study.replace('/', '')}), with its rule and conditions."]


def _way_on(path: Path, docs: Path) -> str:
    """Return the last line: the page's guide, the next page of its chapter, and back."""
    pages = sorted(path.parent.glob("*.md"))
    following = pages[(pages.index(path) + 1) % len(pages)]
    guide = "guard" if path.stem == "detector" else GUIDES[path.parent.name]
    return (
        f"Guide: [{_title(docs / 'guides' / f'{guide}.md')}](../guides/{guide}.md). "
        f"Next: [{_title(following)}]({following.name}). Back to [all pages](../index.md)."
    )


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
