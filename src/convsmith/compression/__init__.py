"""Compression: fewer parameters and operations at equal accuracy."""

from convsmith.compression.convert import (
    available,
    compress,
    compression_history,
    plan_compression,
    restore_structure,
)
from convsmith.compression.cost import CONVENTIONS, Cost, LayerCost, cost
from convsmith.compression.folding import fold_for_inference
from convsmith.compression.methods.int8 import Int8Model, finish
from convsmith.compression.methods.method import METHODS
from convsmith.compression.methods.packing import load_packed_state, packed_state
from convsmith.compression.operators.blocks import (
    ChainBlock,
    ChainResidual,
    DepthwiseSeparableBlock,
    InceptionLikeBlock,
    InvertedInterleavedBlock,
    MergeAndRunBlock,
    xception_block,
)
from convsmith.compression.operators.chain_spec import (
    ChainSpec,
    ChannelPermutation,
    GroupConvSpec,
    interleaved,
    mixed_radix,
    path_counts,
    shuffle,
    shuffled,
)
from convsmith.compression.operators.chooser import Structure, chain_params, structures, widest_bound, widest_pairs
from convsmith.compression.operators.composite import (
    KernelStructure,
    composite_kernel,
    dense_convolution,
    kernel_structure,
)
from convsmith.compression.operators.conditions import (
    Condition,
    balanced_cost,
    balanced_partition,
    condition,
    is_complementary,
    shortest_partition,
)
from convsmith.compression.operators.interleaved import (
    ChannelOrder,
    InterleavedGroupConv2d,
    InterleavedStructuredConv2d,
    LinearChain,
)
from convsmith.compression.operators.projection import Projection, from_dense, patch_second_moment, project
from convsmith.compression.operators.tune import tune
from convsmith.compression.planning.budget import budget_of
from convsmith.compression.planning.finetune import FinetuneInterrupted, finetune, reestimate_batchnorm
from convsmith.compression.planning.measure import Latency, Size, latencies, layer_errors, size
from convsmith.compression.planning.plan import Budget, Choice, Plan
from convsmith.compression.planning.table import Accuracy, Comparison, Row

__all__ = [
    "CONVENTIONS",
    "METHODS",
    "Accuracy",
    "Budget",
    "ChainBlock",
    "ChainResidual",
    "ChainSpec",
    "ChannelOrder",
    "ChannelPermutation",
    "Choice",
    "Comparison",
    "Condition",
    "Cost",
    "DepthwiseSeparableBlock",
    "FinetuneInterrupted",
    "GroupConvSpec",
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
    "Plan",
    "Projection",
    "Row",
    "Size",
    "Structure",
    "available",
    "balanced_cost",
    "balanced_partition",
    "budget_of",
    "chain_params",
    "composite_kernel",
    "compress",
    "compression_history",
    "condition",
    "cost",
    "dense_convolution",
    "finetune",
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
    "reestimate_batchnorm",
    "restore_structure",
    "shortest_partition",
    "shuffle",
    "shuffled",
    "size",
    "structures",
    "tune",
    "widest_bound",
    "widest_pairs",
    "xception_block",
]
