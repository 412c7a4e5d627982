"""How gates are searched, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from convsmith import arguments
from convsmith.errors import InvalidArgument
from convsmith.registry import check_settings, setting_types

#: passes where the caller names none: the published horizon; enough for nearly all rows of the other solver to converge
DEFAULT_STEPS = {"paper": 30, "converged": 300}
MOST_STEPS = 100_000


@dataclass(frozen=True, kw_only=True)
class RouteSettings:
    """How gates are searched.

    ``gamma``: weight of the gates; a sum over more gates presses harder, so it does not transfer between networks,
    unless ``gamma_per="mean"``: the penalty is then ``gamma`` times the mean gate. ``mode``: ``"converged"`` (stops
    image by image at a local minimum) or ``"paper"`` (the published 30 SGD steps); sparsity in paper mode is set by
    rate x gamma x steps, so never compare it between modes. ``steps``: forward and backward passes, None for 30 in
    paper mode, which takes them all, and at most 300 in converged mode. ``tolerance``: size of the projected gradient,
    relative to that of open gates, at which a row counts as converged. ``upper``: largest gate, default 5 (100 at
    blocks, as published for residual networks). ``init``: gates start at ``"ones"`` or ``"uniform"`` in [0, 1], drawn
    with ``seed`` from a stream of every image's own. ``precision``: ``"fp32"``, ``"tf32"``, ``"bf16"``, ``"fp16"`` for
    the network; gates and losses stay float32. ``channels_last``: memory order of the images. ``open_layers``,
    converged mode only: the gates must carry what the image adds to a blank of its mean colour, so that biases cannot
    make the prediction by themselves and every layer stays open, see `solvers.converged`; a step then passes over two
    images, and both count in ``Routes.passes``.
    """

    gamma: float = 0.05
    gamma_per: Literal["sum", "mean"] = "sum"
    steps: int | None = None
    mode: Literal["converged", "paper"] = "converged"
    upper: float | None = None
    init: Literal["ones", "uniform"] = "ones"
    seed: int = 0
    tolerance: float = 0.01
    precision: Literal["fp32", "bf16", "fp16", "tf32"] = "fp32"
    channels_last: bool = False
    open_layers: bool = False

    def __post_init__(self) -> None:
        arguments.typed(self)
        arguments.number("gamma", self.gamma, least=0)
        arguments.integer("seed", self.seed)
        if self.steps is not None:
            arguments.integer("steps", self.steps, least=1, most=MOST_STEPS)
        if self.upper is not None:
            arguments.number("upper", self.upper, least=1)
        arguments.number("tolerance", self.tolerance, above=0, below=1)
        if self.open_layers and self.mode != "converged":
            rule = "only the converging mode opens layers"
            raise InvalidArgument(rule, argument="open_layers", given=f"mode={self.mode!r}")

    @property
    def most_steps(self) -> int:
        """Number of steps with the default filled in."""
        return self.steps or DEFAULT_STEPS[self.mode]


def settings_with(settings: RouteSettings | None, **changes: Any) -> RouteSettings:
    """Return ``settings`` (default `RouteSettings()`) with some fields changed; an unknown name is an error."""
    check_settings("the search for routes", changes, setting_types(RouteSettings))
    return replace(settings or RouteSettings(), **changes)


def route_settings(find: Mapping[str, Any]) -> RouteSettings:
    """Return the settings of the search among arguments of `find_routes`."""
    return settings_with(None, **{k: v for k, v in find.items() if k not in ("sites", "layers", "batch_size")})
