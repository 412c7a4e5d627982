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
from convsmith.compression.conditions import (
    Condition,
    balanced_cost,
    balanced_partition,
    condition,
    is_complementary,
    shortest_partition,
)
from convsmith.compression.cost import CONVENTIONS, Cost, LayerCost, cost
from convsmith.compression.interleaved import (
    ChannelOrder,
    InterleavedGroupConv2d,
    InterleavedStructuredConv2d,
    LinearChain,
    composite_kernel,
    dense_convolution,
)
from convsmith.compression.projection import Projection, from_dense, patch_second_moment, project, project_low_rank
from convsmith.compression.wiring import Factor, Order, Wiring, interleaved, mixed_radix, path_counts, shuffle, shuffled

__all__ = [
    "CONVENTIONS",
    "ChainBlock",
    "ChainResidual",
    "ChannelOrder",
    "Condition",
    "Cost",
    "DepthwiseSeparableBlock",
    "Factor",
    "InceptionLikeBlock",
    "InterleavedGroupConv2d",
    "InterleavedStructuredConv2d",
    "InvertedInterleavedBlock",
    "LayerCost",
    "LinearChain",
    "MergeAndRunBlock",
    "Order",
    "Projection",
    "Wiring",
    "balanced_cost",
    "balanced_partition",
    "composite_kernel",
    "condition",
    "cost",
    "dense_convolution",
    "from_dense",
    "interleaved",
    "is_complementary",
    "mixed_radix",
    "patch_second_moment",
    "path_counts",
    "project",
    "project_low_rank",
    "shortest_partition",
    "shuffle",
    "shuffled",
    "xception_block",
]
