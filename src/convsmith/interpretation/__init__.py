"""Which channels carried a prediction, what happens without them, and whether an input is adversarial."""

from convsmith.interpretation.ablation import Curve, ablate, apply_routes, removal_curve
from convsmith.interpretation.attacks import ATTACKS, attack
from convsmith.interpretation.baselines import baseline_features
from convsmith.interpretation.class_paths import (
    ClassPaths,
    LayerStatistics,
    SubClusters,
    class_paths,
    dendrogram,
    layer_statistics,
    similarity,
    sub_clusters,
)
from convsmith.interpretation.comparators import SCORES, score_units
from convsmith.interpretation.detector import (
    ArtDetector,
    DetectionReport,
    RouteDetector,
    auroc,
    detection_report,
)
from convsmith.interpretation.evidence import Contrast, nearest_routes, runner_up_contrast
from convsmith.interpretation.find import find_routes
from convsmith.interpretation.heat import heat_map, overlay
from convsmith.interpretation.protocol import DetectionRow, Images, detection_table
from convsmith.interpretation.routes import RouteFlags, Routes
from convsmith.interpretation.search import initialisation_overlap, jaccard, regularisation_path, routes_at_sparsity
from convsmith.interpretation.semantics import (
    InterpretiveLoss,
    LabelScore,
    Topics,
    label_units,
    prediction_difference,
    revise,
    score_labels,
    topics_from_text,
)
from convsmith.interpretation.settings import RouteSettings
from convsmith.interpretation.stream import find_routes_from_loader, iterate_routes

__all__ = [
    "ATTACKS",
    "SCORES",
    "ArtDetector",
    "ClassPaths",
    "Contrast",
    "Curve",
    "DetectionReport",
    "DetectionRow",
    "Images",
    "InterpretiveLoss",
    "LabelScore",
    "LayerStatistics",
    "RouteDetector",
    "RouteFlags",
    "RouteSettings",
    "Routes",
    "SubClusters",
    "Topics",
    "ablate",
    "apply_routes",
    "attack",
    "auroc",
    "baseline_features",
    "class_paths",
    "dendrogram",
    "detection_report",
    "detection_table",
    "find_routes",
    "find_routes_from_loader",
    "heat_map",
    "initialisation_overlap",
    "iterate_routes",
    "jaccard",
    "label_units",
    "layer_statistics",
    "nearest_routes",
    "overlay",
    "prediction_difference",
    "regularisation_path",
    "removal_curve",
    "revise",
    "routes_at_sparsity",
    "runner_up_contrast",
    "score_labels",
    "score_units",
    "similarity",
    "sub_clusters",
    "topics_from_text",
]
