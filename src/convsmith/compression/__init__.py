"""Compression: fewer parameters and operations at equal accuracy."""

from convsmith.compression.blocks import (
    ChainBlock,
    ChainResidual,
    DepthwiseSeparableBlock,
    InceptionLikeBlock,
    InvertedInterleavedBlock,
    MergeAndRunBlock,
    xception_block,
)
from convsmith.compression.chooser import Structure, chain_params, structures, widest_bound, widest_pairs
from convsmith.compression.composite import KernelStructure, composite_kernel, dense_convolution, kernel_structure
from convsmith.compression.conditions import (
    Condition,
    balanced_cost,
    balanced_partition,
    condition,
    is_complementary,
    shortest_partition,
)
from convsmith.compression.convert import available, compress, plan_compression, rebuild, recipes
from convsmith.compression.cost import CONVENTIONS, Cost, LayerCost, cost
from convsmith.compression.folding import fold_for_inference
from convsmith.compression.int8 import Int8Model, finish
from convsmith.compression.interleaved import (
    ChannelOrder,
    InterleavedGroupConv2d,
    InterleavedStructuredConv2d,
    LinearChain,
)
from convsmith.compression.measure import Latency, Size, latencies, layer_errors, size
from convsmith.compression.method import METHODS
from convsmith.compression.packing import load_packed_state, packed_state
from convsmith.compression.plan import Budget, Choice, Plan
from convsmith.compression.pointwise_pair import project_low_rank
from convsmith.compression.projection import Projection, from_dense, patch_second_moment, project
from convsmith.compression.repair import RepairInterrupted, reestimate_batchnorm, repair
from convsmith.compression.table import Accuracy, Comparison, Row
from convsmith.compression.wiring import Factor, Order, Wiring, interleaved, mixed_radix, path_counts, shuffle, shuffled

__all__ = [
    "CONVENTIONS",
    "METHODS",
    "Accuracy",
    "Budget",
    "ChainBlock",
    "ChainResidual",
    "ChannelOrder",
    "Choice",
    "Comparison",
    "Condition",
    "Cost",
    "DepthwiseSeparableBlock",
    "Factor",
    "InceptionLikeBlock",
    "Int8Model",
    "InterleavedGroupConv2d",
    "InterleavedStructuredConv2d",
    "InvertedInterleavedBlock",
    "KernelStructure",
    "Latency",
    "LayerCost",
    "LinearChain",
    "MergeAndRunBlock",
    "Order",
    "Plan",
    "Projection",
    "RepairInterrupted",
    "Row",
    "Size",
    "Structure",
    "Wiring",
    "available",
    "balanced_cost",
    "balanced_partition",
    "chain_params",
    "composite_kernel",
    "compress",
    "condition",
    "cost",
    "dense_convolution",
    "finish",
    "fold_for_inference",
    "from_dense",
    "interleaved",
    "is_complementary",
    "kernel_structure",
    "latencies",
    "layer_errors",
    "load_packed_state",
    "mixed_radix",
    "packed_state",
    "patch_second_moment",
    "path_counts",
    "plan_compression",
    "project",
    "project_low_rank",
    "rebuild",
    "recipes",
    "reestimate_batchnorm",
    "repair",
    "shortest_partition",
    "shuffle",
    "shuffled",
    "size",
    "structures",
    "widest_bound",
    "widest_pairs",
    "xception_block",
]
