"""What every pillar needs to know about a network: its layers, its features, its outputs, its operations."""

from convsmith.inspection.counting import Count, OperationCounts, count_operations
from convsmith.inspection.feature_maps import channels_first, feature_fn, infer_channels
from convsmith.inspection.features import Features, classifier_of, extract_features, features_and_logits
from convsmith.inspection.layers import Call, Layer, LayerInventory
from convsmith.inspection.modes import check_evaluation, eager, evaluating, unwrap
from convsmith.inspection.outputs import class_scores, joined_output, main_output, output_tensors
from convsmith.inspection.trace import trace_layers

__all__ = [
    "Call",
    "Count",
    "Features",
    "Layer",
    "LayerInventory",
    "OperationCounts",
    "channels_first",
    "check_evaluation",
    "class_scores",
    "classifier_of",
    "count_operations",
    "eager",
    "evaluating",
    "extract_features",
    "feature_fn",
    "features_and_logits",
    "infer_channels",
    "joined_output",
    "main_output",
    "output_tensors",
    "trace_layers",
    "unwrap",
]
