"""Which channels carried a prediction, what happens without them, and whether an input is adversarial."""

from convsmith.interpretation.ablation import Curve, ablate, apply_routes, removal_curve
from convsmith.interpretation.comparators import score_units
from convsmith.interpretation.find import RouteSettings, find_routes
from convsmith.interpretation.routes import RouteFlags, Routes

__all__ = [
    "Curve",
    "RouteFlags",
    "RouteSettings",
    "Routes",
    "ablate",
    "apply_routes",
    "find_routes",
    "removal_curve",
    "score_units",
]
