"""How gates are searched, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass

from convsmith.errors import InvalidArgument, close_matches
from convsmith.interpretation.gates import PRECISIONS

MODES = ("converged", "paper")
#: steps where the caller names none: the published horizon; enough for the converging solver to settle or come close
DEFAULT_STEPS = {"paper": 30, "converged": 100}


@dataclass(frozen=True)
class RouteSettings:
    """How gates are searched; see `find_routes` for the meaning of every field."""

    gamma: float = 0.05
    gamma_per: str = "sum"
    steps: int | None = None
    mode: str = "converged"
    upper: float | None = None
    init: str = "ones"
    seed: int = 0
    step_size: float = 1.0
    tolerance: float = 1e-3
    precision: str = "fp32"
    channels_last: bool = False
    keep_open: bool = False

    def __post_init__(self) -> None:
        rules: list[tuple[bool, str, str]] = [
            (self.mode in MODES, "the solver has one of two modes", "mode"),
            (self.gamma_per in ("sum", "mean"), "gamma weighs the sum or the mean of the gates", "gamma_per"),
            (self.init in ("ones", "uniform"), "gates start at ones or uniform in [0, 1]", "init"),
            (self.precision in PRECISIONS, "the precision is one of " + ", ".join(PRECISIONS), "precision"),
            (0 <= self.gamma < float("inf"), "gamma is a finite weight of at least 0", "gamma"),
            (self.steps is None or self.steps >= 1, "the solver takes at least one step", "steps"),
            (self.upper is None or self.upper >= 1, "gates start at 1, so their bound is at least 1", "upper"),
            (self.step_size > 0, "the step size is positive", "step_size"),
            (self.tolerance >= 0, "the tolerance is not negative", "tolerance"),
            (not self.keep_open or self.mode == "converged", "only the converging mode keeps layers open", "keep_open"),
        ]
        for holds, rule, asked in rules:
            if not holds:
                given = getattr(self, asked)
                hint = close_matches(str(given), MODES) if asked == "mode" else None
                raise InvalidArgument(rule, argument=asked, given=repr(given), hint=hint)
