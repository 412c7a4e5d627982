"""The inner problem of adversarial reweighting: a Wasserstein critic, and the weights that please it least, exactly.

Gu et al., NeurIPS 2021, eq. 5-7; gradient penalty: Gulrajani et al., NeurIPS 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convsmith.errors import InvalidArgument


def worst_weights(values: Tensor, rho: float) -> Tensor:
    """Return ``argmin_w  w . values`` over ``w >= 0, sum w = n, |w - 1|^2 <= rho n``, for ``values`` [n].

    The conditions of optimality say ``w_i = max(0, tau - theta * values_i)``. With the m smallest values c active,
    ``tau = (n + theta * C1) / m`` and the sphere gives ``theta^2 = ((1 + rho) n - n^2 / m) / (C2 - C1^2 / m)`` with
    C1 and C2 the sums of c and of c^2, so one pass over m = 1..n finds the only m whose weights end where the next
    value begins. If all of the mass may sit on the smallest values, it does, evenly.

    Exact up to rounding, O(n log n), float64 inside. Differs from the papers: they call a cone solver.
    """
    if values.dim() != 1 or len(values) == 0 or not rho >= 0:
        raise InvalidArgument("weights need values [n] and rho >= 0", given=f"{tuple(values.shape)}, rho={rho}")
    n = len(values)
    c, order = values.detach().double().sort()
    c = c - c[0]
    tied = int((c <= 1e-12 * max(1.0, float(c[-1]))).sum())
    weights = torch.zeros_like(c)
    if n * n / tied <= (1 + rho) * n * (1 + 1e-12):
        weights[:tied] = n / tied  # the ball does not bind
    elif rho == 0:
        weights[:] = 1.0
    else:
        active = torch.arange(1, n + 1, dtype=torch.float64, device=c.device)
        first, second = c.cumsum(0), c.square().cumsum(0)
        spread = (second - first.square() / active).clamp_min(0)
        theta = (((1 + rho) * n - n * n / active).clamp_min(0) / spread.clamp_min(1e-300)).sqrt()
        tau = (n + theta * first) / active
        following = torch.cat([c[1:], c.new_full((1,), torch.inf)])
        slack = 1e-9 * (1 + tau.abs())
        fits = (tau - theta * c > -slack) & (tau - theta * following <= slack) & (spread > 0)
        fits &= (1 + rho) * n >= n * n / active
        if not bool(fits.any()):
            raise InvalidArgument("the weights' problem has no solution for these values", given=values.tolist()[:5])
        at = int(fits.nonzero()[0])
        weights = (tau[at] - theta[at] * c).clamp_min(0)
        weights *= n / weights.sum()
    out = torch.empty_like(weights)
    out[order] = weights
    return out.to(values.dtype)


def train_critic(
    source: Tensor,
    target: Tensor,
    weights: Tensor,
    *,
    steps: int = 200,
    hidden: int = 128,
    penalty: float = 10.0,
    lr: float = 1e-3,
    batch: int = 128,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Return a critic D [n, d] -> [n, 1] that maximises ``mean w_i D(s_i) - mean D(t_j)`` with a gradient penalty.

    All draws come from ``generator``. The weighted mean is taken over uniformly drawn batches.
    """
    d = source.shape[1]
    device = source.device
    # built with the generator's numbers, not the global ones: training must not notice
    sizes = [(d, hidden), (hidden, hidden), (hidden, 1)]
    linears = []
    for fan_in, fan_out in sizes:
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(fan_out, fan_in, generator=generator) * (2 / fan_in) ** 0.5)
            linear.bias.zero_()
        linears.append(linear)
    critic = nn.Sequential(linears[0], nn.LeakyReLU(0.2), linears[1], nn.LeakyReLU(0.2), linears[2]).to(device)
    optimizer = torch.optim.Adam(critic.parameters(), lr=lr, betas=(0.5, 0.9))
    with torch.enable_grad():
        for _ in range(steps):
            i = torch.randint(len(source), (batch,), generator=generator).to(device)
            j = torch.randint(len(target), (batch,), generator=generator).to(device)
            mix = torch.rand(batch, 1, generator=generator).to(device)
            s, t = source[i], target[j]
            between = (mix * s + (1 - mix) * t).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            gap = (weights[i].to(s) * critic(s)[:, 0]).mean() - critic(t).mean()
            loss = -gap + penalty * (slope.norm(dim=1) - 1).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return critic.requires_grad_(False)


def critic_gap(critic: nn.Module, source: Tensor, target: Tensor, weights: Tensor) -> float:
    """Return ``mean w_i D(s_i) - mean D(t_j)``, the critic's estimate of the weighted Wasserstein distance."""
    with torch.no_grad():
        return float((weights * critic(source)[:, 0]).mean() - critic(target).mean())
