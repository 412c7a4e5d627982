"""How gates are searched, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass

from convsmith.errors import InvalidArgument, close_matches
from convsmith.interpretation.gates import PRECISIONS

MODES = ("converged", "paper")
#: passes where the caller names none: the published horizon; enough for nearly all rows of the other solver to converge
DEFAULT_STEPS = {"paper": 30, "converged": 150}


@dataclass(frozen=True, kw_only=True)
class RouteSettings:
    """How gates are searched.

    ``gamma``: weight of the gates; a sum over more gates presses harder, so it does not transfer between networks,
    unless ``gamma_per="mean"``: the penalty is then ``gamma`` times the mean gate. ``mode``: ``"converged"`` (stops
    image by image at a local minimum) or ``"paper"`` (the published 30 SGD steps); sparsity in paper mode is set by
    rate x gamma x steps, so never compare it between modes. ``steps``: forward and backward passes, None for 30 in
    paper mode, which takes them all, and at most 150 in converged mode. ``tolerance``: size of the projected gradient,
    relative to that of open gates, at which a row counts as converged. ``upper``: largest gate, default 5 (100 at
    blocks, as published for residual networks). ``init``: gates start at ``"ones"`` or ``"uniform"`` in [0, 1], drawn
    with ``seed`` from a stream of every image's own. ``precision``: ``"fp32"``, ``"tf32"``, ``"bf16"``, ``"fp16"`` for
    the network; gates and losses stay float32. ``channels_last``: memory order of the images. ``open_layers``,
    converged mode only: where a layer would close completely, so that biases alone make the prediction, use the
    largest gamma (up to the one asked for) that leaves every layer open, see `open_layers.open_layers`; such images
    cost several searches, and ``Routes.gamma`` says what each one got.
    """

    gamma: float = 0.05
    gamma_per: str = "sum"
    steps: int | None = None
    mode: str = "converged"
    upper: float | None = None
    init: str = "ones"
    seed: int = 0
    tolerance: float = 0.03
    precision: str = "fp32"
    channels_last: bool = False
    open_layers: bool = False

    def __post_init__(self) -> None:
        rules: list[tuple[bool, str, str]] = [
            (self.mode in MODES, "the solver has one of two modes", "mode"),
            (self.gamma_per in ("sum", "mean"), "gamma weighs the sum or the mean of the gates", "gamma_per"),
            (self.init in ("ones", "uniform"), "gates start at ones or uniform in [0, 1]", "init"),
            (self.precision in PRECISIONS, "the precision is one of " + ", ".join(PRECISIONS), "precision"),
            (0 <= self.gamma < float("inf"), "gamma is a finite weight of at least 0", "gamma"),
            (self.steps is None or self.steps >= 1, "the solver takes at least one step", "steps"),
            (self.upper is None or self.upper >= 1, "gates start at 1, so their bound is at least 1", "upper"),
            (0 < self.tolerance < 1, "the tolerance is a share of the start, between 0 and 1", "tolerance"),
            (not self.open_layers or self.mode == "converged", "only the converging mode opens layers", "open_layers"),
        ]
        for holds, rule, asked in rules:
            if not holds:
                given = getattr(self, asked)
                hint = close_matches(str(given), MODES) if asked == "mode" else None
                raise InvalidArgument(rule, argument=asked, given=repr(given), hint=hint)

    @property
    def most_steps(self) -> int:
        """Number of steps with the default filled in."""
        return self.steps or DEFAULT_STEPS[self.mode]
