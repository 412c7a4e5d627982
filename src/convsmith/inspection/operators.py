"""What every torch operator costs in multiply-accumulates: torch's own formulas, those it lacks, and what is free.

One MAC is one multiplication with its addition, counted for products that are contracted: matrix products,
convolutions, attention, recurrent layers, bilinear forms, triangular solves. Elementwise products, normalisation,
pooling, interpolation and look-ups contract nothing and count none. An operator of neither kind is not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

#: (arguments, keyword arguments, result) of one call -> its MACs
Rule = Callable[[tuple[Any, ...], dict[str, Any], Any], int]

#: operators of `torch.ops.aten` that contract nothing and carry neither torch's tag for pointwise ones nor are views;
#: an in-place form (``fill_``) and a hidden one (``_softmax``) count as the plain name
FREE = """
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d affine_grid_generator all aminmax amax amin any arange argmax argmin argsort as_strided
as_strided_scatter assert_async assert_scalar avg_pool1d avg_pool2d avg_pool3d batch_norm bernoulli bincount
bucketize cat channel_shuffle col2im complex constant_pad_nd copy count_nonzero cudnn_batch_norm cummax cummin
cumprod cumsum detach diag_embed diagonal_scatter efficientzerotensor embedding embedding_renorm empty empty_like
empty_permuted empty_strided equal eye fill flip fractional_max_pool2d fractional_max_pool3d full full_like
functional_assert_async fused_dropout fused_rms_norm fused_sdp_choice gather glu grid_sampler_2d grid_sampler_3d
histc im2col index index_add index_copy index_fill index_put index_reduce index_select instance_norm is_all_true
is_any_true isin item kthvalue lift lift_fresh linalg_check_errors
linalg_vector_norm linspace local_scalar_dense log_softmax
logcumsumexp logsumexp logspace masked_fill masked_scatter masked_select max max_pool1d max_pool2d_with_indices
max_pool3d_with_indices max_unpool2d max_unpool3d mean median min mode multinomial nan_to_num nanmedian nansum
native_batch_norm native_batch_norm_legit native_batch_norm_legit_no_training native_dropout native_group_norm
native_layer_norm new_empty new_empty_strided new_full new_ones new_zeros nll_loss2d_forward nll_loss_forward
nonzero nonzero_static norm normal ones ones_like pack_padded_sequence pixel_shuffle pixel_unshuffle prelu_kernel
prod put rand rand_like randint randint_like randn randn_like randperm reflection_pad1d reflection_pad2d
reflection_pad3d renorm repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d resize
rms_norm roll rot90 safe_softmax scalar_tensor scatter scatter_add scatter_reduce searchsorted select_scatter set
slice_scatter softmax sort stack std std_mean sum take thnn_fused_gru_cell thnn_fused_lstm_cell to_copy topk trace
tril tril_indices triu triu_indices unfold unique unique2 unique_consecutive unique_dim unsafe_index
unsafe_masked_index unsafe_split unsafe_split_with_sizes unsafe_view upsample_bicubic2d upsample_bicubic2d_aa
upsample_bilinear2d upsample_bilinear2d_aa upsample_linear1d upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d upsample_trilinear3d
var var_mean weight_norm_interface where zero zeros zeros_like
"""
#: operators elsewhere that move, round, compare or pool values: int8 codes to numbers and back, boxes and regions
FREE_ELSEWHERE = """
quantized_decomposed::choose_qparams quantized_decomposed::choose_qparams_per_token
quantized_decomposed::choose_qparams_symmetric quantized_decomposed::dequantize_per_channel
quantized_decomposed::dequantize_per_channel_group quantized_decomposed::dequantize_per_tensor
quantized_decomposed::dequantize_per_token quantized_decomposed::fake_quant_per_channel
quantized_decomposed::quantize_per_channel quantized_decomposed::quantize_per_channel_group
quantized_decomposed::quantize_per_tensor quantized_decomposed::quantize_per_token torchvision::nms
torchvision::ps_roi_align torchvision::ps_roi_pool torchvision::roi_align torchvision::roi_pool
"""


def macs_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int | None:
    """Return the multiply-accumulates of one call of the operator ``func``, or None where they are not known."""
    name = operator_name(func)
    if name in RULES:
        return RULES[name](args, kwargs, out)
    if "scaled_dot_product" in name:
        return _attention(-2)(args, kwargs, out)
    if func.overloadpacket in flop_registry:
        return int(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)) // 2
    return 0 if is_free(func) else None


def operator_name(func: Any) -> str:
    """Return ``"aten::mm"`` for any overload of it."""
    return str(func.name()).split(".")[0]


def is_free(func: Any) -> bool:
    """Tell whether the operator is known to contract nothing."""
    space, _, name = operator_name(func).partition("::")
    if space in ("prim", "prims") or func.is_view or torch.Tag.pointwise in func.tags:
        return True
    if space != "aten":
        return f"{space}::{name}" in FREE_ELSEWHERE.split()
    plain = {name.strip("_"), name.strip("_").removesuffix("_copy")}
    return not plain.isdisjoint(FREE.split()) or name.startswith(("_foreach_", "_assert_", "sym_", "is_"))


def has_rule(func: Any) -> bool:
    """Tell whether the operator is counted as it stands, not by the parts it is made of."""
    name = operator_name(func)
    return name in RULES or "scaled_dot_product" in name or func.overloadpacket in flop_registry


def _attention(keys: int) -> Rule:
    """Count H L S (E + V), whatever a mask hides: queries [.., H, L, E], S keys along axis ``keys``, values [.., V]."""

    def rule(args: tuple[Any, ...], _kwargs: Any, _out: Any) -> int:
        query, key, value = args[:3]
        return int(query.shape[:-1].numel() * key.shape[keys] * (query.shape[-1] + value.shape[-1]))

    return rule


def _product_with(position: int) -> Rule:
    """Every element of the result is a sum over the last axis of argument ``position``."""

    def rule(args: tuple[Any, ...], _kwargs: Any, out: Any) -> int:
        return int(out.numel() * args[position].shape[-1])

    return rule


def _elements(position: int) -> Rule:
    """One MAC for every element of argument ``position``: a matrix with a vector, a vector with a vector."""

    def rule(args: tuple[Any, ...], _kwargs: Any, _out: Any) -> int:
        return int(args[position].numel())

    return rule


def _trilinear(args: tuple[Any, ...], _kwargs: Any, _out: Any) -> int:
    """One MAC for every weight of every row, x1_i W_kij x2_j; the product x1_i x2_j is elementwise."""
    tensors, expansions = args[:3], args[3:6]
    shapes = []
    for tensor, places in zip(tensors, expansions, strict=True):
        shape = list(tensor.shape)
        for place in sorted(places):
            shape.insert(place, 1)
        shapes.append(shape)
    return math.prod(torch.broadcast_shapes(*shapes))


def _cudnn_rnn(args: tuple[Any, ...], _kwargs: Any, _out: Any) -> int:
    """Return steps times all weight matrices; input [T, B, I] or, packed, [sum of lengths, I]."""
    x, weights = args[0], args[1]
    return int(x.shape[:-1].numel() * sum(w.numel() for w in weights if w.dim() > 1))


def _embedding_bag(args: tuple[Any, ...], kwargs: dict[str, Any], _out: Any) -> int:
    """Count a weighted sum of rows; an unweighted one has no products."""
    weighted = kwargs.get("per_sample_weights", args[6] if len(args) > 6 else None)
    return int(args[1].numel() * args[0].shape[1]) if isinstance(weighted, Tensor) else 0


def _cubes(parts: int) -> Rule:
    """Return n^3 / ``parts``, rounded down, for every matrix [.., n, n]."""

    def rule(args: tuple[Any, ...], _kwargs: Any, _out: Any) -> int:
        return int(args[0].shape[:-2].numel() * (args[0].shape[-1] ** 3 // parts))

    return rule


def _triangular_solve(args: tuple[Any, ...], _kwargs: Any, out: Any) -> int:
    """Return n^2 / 2 for every right-hand side."""
    first = out[0] if isinstance(out, tuple | list) else out
    n = min(args[0].shape[-1], args[0].shape[-2])
    return int(first.numel() * n // 2)


def _solve(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Return n^3 / 3 for the factors and n^2 for every right-hand side."""
    return _cubes(3)(args, kwargs, out) + int(out[0].numel() * args[0].shape[-1])


def _qr(args: tuple[Any, ...], kwargs: dict[str, Any], _out: Any) -> int:
    """Return l k^2 - k^3 / 3 for every matrix, k its shorter and l its longer side, twice with Q."""
    rows, columns = args[0].shape[-2:]
    k, length = min(rows, columns), max(rows, columns)
    mode = args[1] if len(args) > 1 else kwargs.get("mode", "reduced")
    return int(args[0].shape[:-2].numel() * (length * k**2 - k**3 // 3) * (1 if mode == "r" else 2))


_PRODUCTS = """
aten::linear mkldnn::_linear_pointwise aten::_int_mm aten::_grouped_mm aten::_scaled_grouped_mm
aten::_weight_int8pack_mm aten::_weight_int4pack_mm aten::_weight_int4pack_mm_for_cpu aten::_cdist_forward
aten::_euclidean_dist aten::_pdist_forward
"""
RULES: dict[str, Rule] = {
    **dict.fromkeys(_PRODUCTS.split(), _product_with(0)),
    # queries [B, L, H, E], keys [B, S, h, E]
    **dict.fromkeys(("aten::_flash_attention_forward", "aten::_efficient_attention_forward"), _attention(1)),
    **dict.fromkeys(("aten::mv", "aten::dot", "aten::vdot"), _elements(0)),
    **dict.fromkeys(("aten::addmv", "aten::addmv_"), _elements(1)),
    "aten::addr": lambda _args, _kwargs, out: int(out.numel()),
    "aten::addbmm": lambda args, _kwargs, _out: int(args[1].numel() * args[2].shape[-1]),
    "aten::_trilinear": _trilinear,
    # steps [T, B, I] times both weight matrices
    "aten::mkldnn_rnn_layer": lambda args, _, __: int(args[0].shape[:2].numel() * (args[1].numel() + args[2].numel())),
    **dict.fromkeys(("aten::_cudnn_rnn", "aten::miopen_rnn"), _cudnn_rnn),
    # the kernel [K, C, O] at every output place
    "aten::conv_tbc": lambda args, _kwargs, out: int(out.numel() * args[1].shape[0] * args[1].shape[1]),
    # as the convolution with the same kernel [O, C/groups, kh, kw]; sampling is interpolation
    "torchvision::deform_conv2d": lambda args, _kwargs, out: int(out.numel() * args[1][0].numel()),
    **dict.fromkeys(("aten::_embedding_bag", "aten::_embedding_bag_forward_only"), _embedding_bag),
    "aten::linalg_cholesky_ex": _cubes(6),
    "aten::cholesky_solve": _product_with(1),  # two triangular solves: n^2 for every right-hand side
    "aten::linalg_solve_triangular": _triangular_solve,
    "aten::triangular_solve": lambda args, kwargs, out: _triangular_solve(args[1:], kwargs, out),
    **dict.fromkeys(("aten::linalg_lu_factor_ex", "aten::_linalg_det", "aten::_linalg_slogdet"), _cubes(3)),
    "aten::_linalg_solve_ex": _solve,
    "aten::linalg_inv_ex": _cubes(1),
    "aten::linalg_qr": _qr,
}
