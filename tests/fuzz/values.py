"""Values to call things with: tensors of every kind and scale, and things that are no tensors at all."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
#: how the entries of a tensor are made from standard normal ones
CONTENTS = {
    "normal": lambda x: x,
    "relu": lambda x: x.relu(),
    "zero": lambda x: x * 0,
    "constant": lambda x: x * 0 + 3,
    "tiny": lambda x: x * 1e-12,
    "large": lambda x: x * 1e12,
    "offset": lambda x: x + 1e3,
    "repeated": lambda x: x[:1].expand_as(x).clone(),
    "nan": lambda x: torch.where(torch.arange(x.numel()).reshape(x.shape) == 0, torch.nan, x),
    "infinite": lambda x: torch.where(torch.arange(x.numel()).reshape(x.shape) == 0, torch.inf, x),
}
LAYOUTS = ("contiguous", "transposed", "sliced")


def made(shape: tuple[int, ...], content: str, seed: int, dtype: torch.dtype, layout: str = "contiguous") -> Tensor:
    """Return the tensor that a case names."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = CONTENTS[content](x).to(dtype) if x.numel() else x.to(dtype)
    if layout == "transposed" and x.dim() >= 2:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        return torch.stack([x, x], -1)[..., 0]
    return x


@st.composite
def features(draw, rank: int = 4, channels: int | None = None, count: int | None = None) -> Tensor:
    """Feature maps [B, C, H, W] (rank 4), rows [B, C] (rank 2)."""
    shape = [draw(st.integers(1, 9)) for _ in range(rank)]
    shape[0], shape[1] = count or shape[0], channels or shape[1]
    return made(
        tuple(shape),
        draw(st.sampled_from(list(CONTENTS))),
        draw(st.integers(0, 9)),
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(LAYOUTS)),
    )


@st.composite
def matrices(draw) -> Tensor:
    """Symmetric positive semi-definite matrices [B, d, d], full rank or not."""
    b, d, m = draw(st.integers(1, 3)), draw(st.integers(1, 8)), draw(st.integers(1, 12))
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    content = draw(st.sampled_from(("normal", "relu", "zero", "tiny", "constant", "nan")))
    x = made((b, d, m), content, draw(st.integers(0, 9)), dtype)
    return x @ x.mT / m


@st.composite
def probabilities(draw, classes: int | None = None) -> Tensor:
    """Rows of probabilities [n, K]."""
    n, k = draw(st.integers(1, 8)), classes or draw(st.integers(2, 6))
    sharp = draw(st.sampled_from((0.1, 1.0, 50.0)))
    return (sharp * made((n, k), "normal", draw(st.integers(0, 9)), torch.float32)).softmax(1)


def junk() -> st.SearchStrategy:
    """What people pass by mistake."""
    return st.sampled_from(
        [
            None,
            "photograph",
            "",
            0,
            -1,
            2.5,
            float("nan"),
            10**30,
            True,
            [],
            [1, 2],
            {},
            (3, "a"),
            object(),
            np.zeros((2, 3)),
            np.float64(1.5),
            torch.zeros(0),
            torch.zeros(2, 3, dtype=torch.long),
            torch.zeros(2, 3, dtype=torch.bool),
            torch.zeros(2, 3, dtype=torch.complex64),
            torch.zeros(2, 3, device="meta"),
            torch.eye(3).to_sparse(),
            torch.tensor(1.0),
            torch.zeros(1, 2, 3, 4, 5),
            torch.zeros(0, 4, 3, 3),
            torch.zeros(2, 0, 3, 3),
        ]
    )


def spelled(value: object) -> str:
    """Say a value in a few words."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    if isinstance(value, np.ndarray):
        return f"array {value.shape}"
    return repr(value)[:60]
