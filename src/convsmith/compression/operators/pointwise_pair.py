"""IGCV3's pointwise pair nearest to a dense 1x1 matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from convsmith.compression.operators.chain_spec import check_divides
from convsmith.errors import InvalidArgument


def project_low_rank(matrix: Tensor, groups_up: int, groups_down: int, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return IGCV3's pointwise pair nearest to a dense 1x1 matrix [out, in], and the energy it keeps.

    The pair ``W_down P W_up`` with G1 = ``groups_up``, G2 = ``groups_down`` and ``rank`` paths per pair has blocks of
    rank ``rank`` between every input and output super-channel: a truncated decomposition per block, in closed form.

    Returns:
        up [G1 G2 rank, in / G1], down [out, G1 rank] as `InvertedInterleavedBlock` holds them; the energy.

    Examples:
        >>> up, down, energy = project_low_rank(torch.randn(16, 16), 2, 2, rank=4)
    """
    out, in_channels = matrix.shape
    check_divides(groups_up, in_channels, "groups_up")
    check_divides(groups_down, out, "groups_down")
    largest = min(in_channels // groups_up, out // groups_down)
    if not 1 <= rank <= largest:
        raise InvalidArgument(
            "the rank is between 1 and a block's smaller side", argument=rank, given=f"at most {largest}"
        )
    blocks = matrix.detach().double().view(groups_down, out // groups_down, groups_up, in_channels // groups_up)
    u, s, vh = torch.linalg.svd(blocks.transpose(1, 2), full_matrices=False)
    root = s[..., :rank].sqrt()
    down = (u[..., :rank] * root[..., None, :]).permute(0, 2, 1, 3)  # [G2, out/G2, G1, rank]
    up = vh[..., :rank, :] * root[..., None]  # [G2, G1, rank, in/G1]
    energy = float(s[..., :rank].square().sum() / s.square().sum()) if s.any() else 1.0
    return (
        up.reshape(groups_up * groups_down * rank, -1).to(matrix.dtype),
        down.reshape(out, -1).to(matrix.dtype),
        energy,
    )
