"""The one honest table: what got smaller, what got faster, what it cost, and where the two disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from convsmith.compression.planning.measure import Latency, Size


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers on held-out images with its 95 % bootstrap interval, [0, 1]."""

    value: float
    low: float
    high: float

    def text(self) -> str:
        """Return percent with interval."""
        return f"{100 * self.value:.2f} ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Row:
    """One network. ``accuracy`` as compressed, ``finetuned`` after fine-tuning (None: not measured, not done)."""

    name: str
    size: Size
    latency: Mapping[str, Latency | str] = field(default_factory=dict)
    accuracy: Accuracy | None = None
    finetuned: Accuracy | None = None
    layer_errors: Mapping[str, float | str] = field(default_factory=dict)

    def final(self) -> Accuracy | None:
        """Return the accuracy of the network one would use."""
        return self.finetuned or self.accuracy


def case_words(case: str) -> str:
    """Say a timed case in words: ``"compiled 32"`` is "compiled, 32 images"."""
    kind, batch = case.rsplit(" ", 1)
    return f"{kind}, {batch} image{'' if batch == '1' else 's'}"


@dataclass(frozen=True)
class Comparison:
    """Rows of one run, the original first, timed with ``threads`` threads."""

    rows: Sequence[Row]
    threads: int

    def cases(self) -> list[str]:
        """Return the timed cases in order."""
        return list(self.rows[0].latency)

    def columns(self) -> list[str]:
        """Return the table's column titles."""
        timed = [f"{case_words(case)}, ms (of original)" for case in self.cases()]
        return ["network", "params", "non-zero", "MACs", "file, kB", "accuracy, %", "fine-tuned, %", *timed]

    def cells(self) -> list[list[str]]:
        """Return one list of texts per row; shares are of the original."""
        base = self.rows[0].size
        out = []
        for row in self.rows:
            s = row.size
            line = [
                row.name,
                _share(s.params, base.params),
                _share(s.nonzero, base.nonzero),
                _share(s.macs, base.macs),
                f"{(s.bytes + s.recipe) / 1024:.1f} ({(s.bytes + s.recipe) / (base.bytes + base.recipe):.0%})",
            ]
            line += [a.text() if a is not None else "-" for a in (row.accuracy, row.finetuned)]
            for case in self.cases():
                found = row.latency.get(case, "not timed")
                timed = isinstance(found, Latency)
                line.append(f"{found.median:.3g} ({found.ratio:.2f})" if timed else "-")  # type: ignore[union-attr]
            out.append(line)
        return out

    def text(self) -> str:
        """Return the table and its notes for a terminal."""
        lines = [self.columns(), *self.cells()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        shown = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*shown, *(f"note: {note}" for note in self.notes())])

    def notes(self) -> list[str]:
        """Return where the numbers disagree: fewer MACs without less time, zeros without less work, no compilation."""
        base = self.rows[0]
        found = []
        for row in self.rows[1:]:
            share = row.size.macs / max(base.size.macs, 1)
            slower = []
            for case in self.cases():
                timed = row.latency.get(case)
                if isinstance(timed, str):
                    found.append(f"{row.name}, {case_words(case)}: {timed}")
                elif timed is not None and timed.ratio > max(1.0, share) * 1.02:
                    slower.append(f"{timed.ratio:.2f} times the original's ({case_words(case)})")
            if slower:
                found.append(f"{row.name}: {share:.0%} of the MACs, but the time is {', '.join(slower)}")
            elif share < 0.95:
                weak = [c for c, t in row.latency.items() if isinstance(t, Latency) and t.ratio > 0.98]
                if weak:
                    found.append(
                        f"{row.name}: {share:.0%} of the MACs, and no time gained ({'; '.join(map(case_words, weak))})"
                    )
            if row.size.nonzero < 0.95 * row.size.params:
                left = row.size.nonzero_macs / max(base.size.macs, 1)
                found.append(
                    f"{row.name}: without multiplications by zero it needs {left:.0%} of the MACs; "
                    "torch's kernels do them all"
                )
        return found

    def front(self) -> list[str]:
        """Return the names on the Pareto front: nobody else is at least as accurate and at least as fast.

        Time is each network's least at batch 1; rows without accuracy or time are left out.
        """
        points = self.points()

        def beaten(accuracy: float, ms: float) -> bool:
            return any(a >= accuracy and t <= ms and (a, t) != (accuracy, ms) for a, t in points.values())

        return [name for name, point in points.items() if not beaten(*point)]

    def points(self) -> dict[str, tuple[float, float]]:
        """Return (accuracy, ms) by name; see `front`.

        The time is the original's median times the median ratio to it, which a change of the machine's speed between
        networks does not move.
        """
        found = {}
        base = {c: t.median for c, t in self.rows[0].latency.items() if isinstance(t, Latency) and c.endswith(" 1")}
        for row in self.rows:
            accuracy = row.final()
            times = [ms * t.ratio for c, ms in base.items() if isinstance(t := row.latency.get(c), Latency)]
            if accuracy is not None and times:
                found[row.name] = (accuracy.value, min(times))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {
            "threads": self.threads,
            "rows": [asdict(row) for row in self.rows],
            "notes": self.notes(),
            "front": self.front(),
        }


def _share(value: int, base: int) -> str:
    return f"{value:,} ({value / max(base, 1):.0%})"
