"""Any power of a covariance or second moment straight from the features, exact, on the cheaper side.

With X (d x M, scaled by 1/sqrt(M)) and the eigenvalues and vectors (l, V) of X^T X,
``(X X^T)^alpha = X V diag(l^(alpha - 1)) V^T X^T`` over the non-zero l: an M x M instead of a d x d eigenproblem.
"""

from __future__ import annotations

import math

from torch import Tensor

from convsmith.errors import InvalidArgument
from convsmith.pooling.covariance import centred
from convsmith.pooling.inputs import columns, float32_island, one_of
from convsmith.pooling.isqrt import SIDES
from convsmith.pooling.spectral import Power, spectral_map


@float32_island
def power_covariance(x: Tensor, *, exponent: float = 0.5, center: bool = True, side: str = "auto") -> Tensor:
    """Return ``Sigma^exponent`` of the covariance (or, with ``center=False``, the second moment) of features.

    Shapes: ``[B, C, H, W]`` or ``[B, C, M]`` -> ``[B, C, C]``. ``exponent`` is positive; null eigenvalues stay null.
    ``side`` as in `convsmith.pooling.isqrt_covariance`. A constant map gives zeros and a zero gradient. Raises
    `InvalidArgument` as `convsmith.pooling.covariance` does, and for an exponent that is not positive.

    Paper: Li et al. (ICCV 2017), section 3.2, with the gradient of Daleckii and Krein.
    Differs from the paper: no division by eigenvalue gaps; the Gram side.
    """
    one_of("side", side, SIDES)
    if not exponent > 0:
        raise InvalidArgument("the exponent of a covariance must be positive", asked="exponent", given=exponent)
    x = columns(x, "power_covariance")
    d, m = x.shape[1], x.shape[2]
    x = (centred(x) if center else x) * (1.0 / math.sqrt(m))
    if side == "positions" or (side == "auto" and m < d):
        return x @ spectral_map(x.mT @ x, Power(exponent - 1.0)) @ x.mT
    return spectral_map(x @ x.mT, Power(float(exponent)))
