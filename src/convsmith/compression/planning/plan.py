"""What a compression will do, layer by layer: printed, saved, edited by hand, and only then run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from convsmith.arguments import checked, number, one_of
from convsmith.compression.planning.agreement import WARN_BELOW
from convsmith.errors import InvalidArgument, close_matches, refusing
from convsmith.files import write_json, write_text

#: the layer name of a choice that concerns the network as a whole
WHOLE = "(whole network)"
BUDGETS = ("macs", "params", "latency")


@dataclass(frozen=True)
class Budget:
    """Keep the share ``keep`` of the network's ``kind``: ``"macs"``, ``"params"`` or ``"latency"``.

    Raises:
        InvalidArgument: ``keep`` is not in (0, 1] or the kind is unknown.
    """

    kind: str
    keep: float

    def __post_init__(self) -> None:
        one_of("a budget", self.kind, BUDGETS)
        number(f"keep_{self.kind}", self.keep, above=0, most=1)


@dataclass(frozen=True)
class Choice:
    """What happens to one layer. ``setting`` is the method's own JSON; an empty one leaves the layer alone.

    ``macs`` and ``params``: (before, after), for one image. ``sensitivity``: what the sensitivity scan says this choice
    costs (relative squared error of the network's output), None if nothing was scanned.
    """

    layer: str
    setting: dict[str, Any]
    macs: tuple[int, int]
    params: tuple[int, int]
    sensitivity: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """A method's choices for one network. ``macs`` and ``params`` are those of the whole network, (before, after).

    ``agreement``: the share of images expected to get the answer they got before, if sensitivities add and weights are
    not re-solved; None where nothing was scanned or the network gives no class scores. ``nearest``: where the budget is
    missed by more than 1 %, the shares next to it that can be reached, below and (where one was found) above.
    """

    method: str
    choices: tuple[Choice, ...]
    macs: tuple[int, int]
    params: tuple[int, int]
    budget: Budget | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    agreement: float | None = None
    nearest: tuple[float, ...] = ()

    def kept(self, kind: str) -> float:
        """Return the share of ``"macs"`` or ``"params"`` that the plan keeps."""
        before, after = self.macs if kind == "macs" else self.params
        return after / before if before else 1.0

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return the setting of every layer that changes."""
        return {choice.layer: choice.setting for choice in self.choices if choice.setting}

    def text(self) -> str:
        """Return the plan as a table for a terminal."""
        head = f"{self.method}: keeps {self.kept('macs'):.1%} of MACs, {self.kept('params'):.1%} of parameters"
        if self.budget is not None:
            head += f" (asked: {self.budget.keep:.1%} of {self.budget.kind})"
        if self.nearest:
            head += f"; nearest that can be reached: {' and '.join(f'{share:.1%}' for share in self.nearest)}"
        if self.agreement is not None:
            head += f"\nexpected agreement with the original: {self.agreement:.0%}"
            if self.agreement < WARN_BELOW:
                head += " (below 90 %: reconstruct on 64 or more images, fine-tune, or keep more)"
        width = max([len(c.layer) for c in self.choices] + [len(n) for n in self.skipped] + [5])
        lines = [head, f"{'layer':{width}}  {'MACs':>6}  {'params':>6}  {'sensitivity':>8}  setting"]
        for c in self.choices:
            shares = [f"{after / before:.1%}" if before else "-" for before, after in (c.macs, c.params)]
            sensitivity = "-" if c.sensitivity is None else f"{c.sensitivity:.2e}"
            setting = ", ".join(f"{k} {_short(v)}" for k, v in c.setting.items()) or "unchanged"
            note = f"  ({c.note})" if c.note else ""
            lines.append(f"{c.layer:{width}}  {shares[0]:>6}  {shares[1]:>6}  {sensitivity:>8}  {setting}{note}")
        lines += [f"{name:{width}}  left alone: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)

    @checked
    def save(self, path: Path | str) -> Path:
        """Write the plan as YAML (``.yaml``, ``.yml``) or JSON (anything else)."""
        path = Path(path)
        value = json.loads(json.dumps(asdict(self)))
        if path.suffix in (".yaml", ".yml"):
            import yaml

            write_text(path, _HELP + yaml.safe_dump(value, sort_keys=False))
        else:
            write_json(path, value)
        return path

    @classmethod
    @checked
    def load(cls, path: Path | str) -> Plan:
        """Read what `save` wrote, hand-edited or not.

        Raises:
            InvalidArgument: no such file, or not a plan.
        """
        path = Path(path)
        if not path.is_file():
            raise InvalidArgument("the plan file must exist", argument=path)
        hint = "write one with: convsmith compress MODEL ... --dry-run --plan FILE, then edit its settings"
        with refusing("this file is not a compression plan", Exception, argument=path, hint=hint):
            if path.suffix in (".yaml", ".yml"):
                import yaml

                value = yaml.safe_load(path.read_text())
            else:
                value = json.loads(path.read_text())
            return cls(
                method=value["method"],
                choices=tuple(_choice(c) for c in value["choices"]),
                macs=tuple(value["macs"]),
                params=tuple(value["params"]),
                budget=Budget(**value["budget"]) if value.get("budget") else None,
                skipped=dict(value.get("skipped") or {}),
                agreement=value.get("agreement"),
                nearest=tuple(value.get("nearest", ())),
            )

    def with_choice(self, layer: str, setting: dict[str, Any]) -> Plan:
        """Return the plan with another setting for one layer (its counts become unknown until it runs)."""
        if layer not in {c.layer for c in self.choices}:
            raise InvalidArgument(
                "the plan has no such layer", given=layer, hint=close_matches(layer, [c.layer for c in self.choices])
            )
        edited = [replace(c, setting=setting, note="edited") if c.layer == layer else c for c in self.choices]
        return replace(self, choices=tuple(edited))


_HELP = "# Edit any `setting` ({} leaves the layer alone), then run: convsmith compress MODEL --plan THIS_FILE\n"


def _choice(value: Mapping[str, Any]) -> Choice:
    return Choice(
        layer=value["layer"],
        setting=dict(value.get("setting") or {}),
        macs=tuple(value["macs"]),
        params=tuple(value["params"]),
        sensitivity=value.get("sensitivity"),
        note=value.get("note", ""),
    )


def named_reasons(skipped: Mapping[str, str], *, first: int = 6) -> str:
    """Return the first layers that are left alone with their reasons, and how many more there are."""
    shown = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:first])
    return shown + (f"; and {len(skipped) - first} more" if len(skipped) > first else "")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{len(value)}]" if len(value) > 6 else "[" + " ".join(_short(v) for v in value) + "]"
    return str(value)
