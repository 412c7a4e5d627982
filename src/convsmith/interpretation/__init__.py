"""Which channels carried a prediction, what happens without them, and whether an input is adversarial."""

from convsmith.interpretation.ablation import Curve, ablate, apply_routes, removal_curve
from convsmith.interpretation.attacks import ATTACKS, attack
from convsmith.interpretation.baselines import baseline_features
from convsmith.interpretation.comparators import SCORES, score_units
from convsmith.interpretation.detector import (
    ArtDetector,
    DetectionReport,
    RouteDetector,
    auroc,
    detection_report,
    folds_by_group,
)
from convsmith.interpretation.find import RouteSettings, find_routes
from convsmith.interpretation.routes import RouteFlags, Routes

__all__ = [
    "ATTACKS",
    "SCORES",
    "ArtDetector",
    "Curve",
    "DetectionReport",
    "RouteDetector",
    "RouteFlags",
    "RouteSettings",
    "Routes",
    "ablate",
    "apply_routes",
    "attack",
    "auroc",
    "baseline_features",
    "detection_report",
    "find_routes",
    "folds_by_group",
    "removal_curve",
    "score_units",
]
