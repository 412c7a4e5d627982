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
        return _attention(args, kwargs, out)
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


def _attention(args: tuple[Any, ...], _kwargs: Any, _out: Any) -> int:
    """Count queries [.., H, L, E], keys [.., h, S, E], values [.., h, S, V]: H L S (E + V), whatever the mask hides."""
    query, key, value = args[:3]
    return int(query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _flash(args: tuple[Any, ...], _kwargs: Any, _out: Any) -> int:
    """Count as `_attention` with queries [B, L, H, E]."""
    query, key, value = args[:3]
    return int(query.shape[:-1].numel() * key.shape[1] * (query.shape[-1] + value.shape[-1]))


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


def _mkldnn_rnn(args: tuple[Any, ...], _kwargs: Any, _out: Any) -> int:
    """Return steps times both weight matrices: input [T, B, I], weights [G H, I] and [G H, H]."""
    steps = args[0].shape[0] * args[0].shape[1]
    return int(steps * (args[1].numel() + args[2].numel()))


def _cudnn_rnn(args: tuple[Any, ...], _kwargs: Any, _out: Any) -> int:
    """Return steps times all weight matrices; input [T, B, I] or, packed, [sum of lengths, I]."""
    x, weights = args[0], args[1]
    return int(x.shape[:-1].numel() * sum(w.numel() for w in weights if w.dim() > 1))


def _embedding_bag(args: tuple[Any, ...], kwargs: dict[str, Any], _out: Any) -> int:
    """Count a weighted sum of rows; an unweighted one has no products."""
    weighted = kwargs.get("per_sample_weights", args[6] if len(args) > 6 else None)
    return int(args[1].numel() * args[0].shape[1]) if isinstance(weighted, Tensor) else 0


def _cholesky(args: tuple[Any, ...], _kwargs: Any, _out: Any) -> int:
    """Return n^3 / 6, rounded down, for every matrix."""
    n = args[0].shape[-1]
    return int(args[0].shape[:-2].numel() * (n**3 // 6))


def _triangular_solve(args: tuple[Any, ...], _kwargs: Any, out: Any) -> int:
    """Return n^2 / 2 for every right-hand side."""
    first = out[0] if isinstance(out, tuple | list) else out
    n = min(args[0].shape[-1], args[0].shape[-2])
    return int(first.numel() * n // 2)


def _lu(args: tuple[Any, ...], _kwargs: Any, _out: Any) -> int:
    """Return n^3 / 3, rounded down, for every matrix."""
    n = args[0].shape[-1]
    return int(args[0].shape[:-2].numel() * (n**3 // 3))


def _solve(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Return n^3 / 3 for the factors and n^2 for every right-hand side."""
    return _lu(args, kwargs, out) + int(out[0].numel() * args[0].shape[-1])


def _qr(args: tuple[Any, ...], kwargs: dict[str, Any], _out: Any) -> int:
    """Return l k^2 - k^3 / 3 for every matrix, k its shorter and l its longer side, twice with Q."""
    rows, columns = args[0].shape[-2:]
    k, length = min(rows, columns), max(rows, columns)
    mode = args[1] if len(args) > 1 else kwargs.get("mode", "reduced")
    return int(args[0].shape[:-2].numel() * (length * k**2 - k**3 // 3) * (1 if mode == "r" else 2))


RULES: dict[str, Rule] = {
    "aten::_flash_attention_forward": _flash,
    "aten::_efficient_attention_forward": _flash,
    "aten::linear": _product_with(0),
    "mkldnn::_linear_pointwise": _product_with(0),
    "aten::mv": _elements(0),
    "aten::addmv": _elements(1),
    "aten::addmv_": _elements(1),
    "aten::dot": _elements(0),
    "aten::vdot": _elements(0),
    "aten::addr": lambda _args, _kwargs, out: int(out.numel()),
    "aten::addbmm": lambda args, _kwargs, _out: int(args[1].numel() * args[2].shape[-1]),
    "aten::_int_mm": _product_with(0),
    "aten::_grouped_mm": _product_with(0),
    "aten::_scaled_grouped_mm": _product_with(0),
    "aten::_weight_int8pack_mm": _product_with(0),
    "aten::_weight_int4pack_mm": _product_with(0),
    "aten::_weight_int4pack_mm_for_cpu": _product_with(0),
    "aten::_trilinear": _trilinear,
    "aten::mkldnn_rnn_layer": _mkldnn_rnn,
    "aten::_cudnn_rnn": _cudnn_rnn,
    "aten::miopen_rnn": _cudnn_rnn,
    # the kernel [K, C, O] at every output place
    "aten::conv_tbc": lambda args, _kwargs, out: int(out.numel() * args[1].shape[0] * args[1].shape[1]),
    # as the convolution with the same kernel [O, C/groups, kh, kw]; sampling is interpolation
    "torchvision::deform_conv2d": lambda args, _kwargs, out: int(out.numel() * args[1][0].numel()),
    "aten::_embedding_bag": _embedding_bag,
    "aten::_embedding_bag_forward_only": _embedding_bag,
    "aten::_cdist_forward": _product_with(0),
    "aten::_euclidean_dist": _product_with(0),
    "aten::_pdist_forward": _product_with(0),
    "aten::linalg_cholesky_ex": _cholesky,
    "aten::cholesky_solve": _product_with(1),  # two triangular solves: n^2 for every right-hand side
    "aten::linalg_solve_triangular": _triangular_solve,
    "aten::triangular_solve": lambda args, kwargs, out: _triangular_solve(args[1:], kwargs, out),
    "aten::linalg_lu_factor_ex": _lu,
    "aten::_linalg_det": _lu,
    "aten::_linalg_slogdet": _lu,
    "aten::_linalg_solve_ex": _solve,
    "aten::linalg_inv_ex": lambda args, _kwargs, _out: int(args[0].numel() * args[0].shape[-1]),  # n^3 a matrix
    "aten::linalg_qr": _qr,
}
