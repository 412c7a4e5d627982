"""Adversarial reweighting: a critic of both domains, and the source weights that please it least, exactly.

Gu et al., Adversarial Reweighting for Partial Domain Adaptation, NeurIPS 2021, eq. 5-7; gradient penalty: Gulrajani et
al., NeurIPS 2017; spectral norm: Miyato et al., ICLR 2018, which ARPM's authors take instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from convsmith import arguments
from convsmith.adaptation.losses.gather import gather
from convsmith.adaptation.losses.operands import vector
from convsmith.adaptation.methods.method import Domains, DomainTask, PairConfig
from convsmith.adaptation.methods.weighting import scale_weights
from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument
from convsmith.inspection.features import Features, classifier_of, extract_features

Smoothness = Literal["penalty", "spectral"]


@dataclass(frozen=True)
class ReweightingSettings(PairConfig):
    """Settings of AR and ARPM.

    Args:
        rho: how far the weights may stand from 1: ``|w - 1|^2 <= rho n``.
        updates: how often the weights are computed anew, evenly over what follows the warm-up.
        critic_steps: updates of the critic each time.
        critic_hidden: width of the critic's two hidden layers.
        warmup: share of all steps before weights and target losses act.
    """

    rho: float = 5.0
    updates: int = 4
    critic_steps: int = 200
    critic_hidden: int = 128
    warmup: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("updates", "critic_steps", "critic_hidden"):
            arguments.integer(name, getattr(self, name), least=1)
        arguments.number("warmup", self.warmup, below=1)


class ReweightedTask(DomainTask):
    """A method with one weight for every source image, chosen against a critic every now and then."""

    #: of the critic (see `train_critic`); one with a penalty sees the weighted source
    smoothness: Smoothness = "penalty"
    image_weights: Tensor
    image_index: Tensor
    class_mean: Tensor
    gap: Tensor

    def __init__(self, model: nn.Module, domains: Domains, settings: ReweightingSettings) -> None:
        super().__init__(model, domains, settings)
        self.start = round(settings.warmup * domains.steps)
        self.every = max(1, (domains.steps - self.start) // settings.updates)
        index = torch.cat([b.index for b in domains.source])
        self.register_buffer("image_index", index)
        self.register_buffer("image_weights", torch.ones(int(index.max()) + 1))  # by image number
        self.register_buffer("class_mean", torch.ones(domains.classes))
        self.register_buffer("gap", torch.zeros(()))

    def before_step(self, step: int) -> None:
        """Compute all image weights anew where they are due."""
        if step >= self.start and (step - self.start) % self.every == 0:
            self._reweigh(step)

    def frozen_logits(self, features: Tensor) -> Tensor:
        """Return the logits of ``features`` from the classifier held constant: the target moves features alone."""
        head = classifier_of(self.model)
        return F.linear(features, head.weight.detach(), None if head.bias is None else head.bias.detach())

    def class_weights(self) -> Tensor:
        """Return the mean weight [K] of the source images of each class, scaled to mean 1."""
        return self.class_mean

    def whole_pass(self, batches: Iterable[Batch]) -> Features:
        """Return one pass over this process's batches in eval mode, where the weights are."""
        found = extract_features(self.model, batches)
        return Features(*(part.to(self.gap.device) for part in (found.features, found.logits, found.labels)))

    def _reweigh(self, step: int) -> None:
        s, whole = self.settings, self.whole_pass(self.domains.source)
        # the target is divided among processes, the source is not
        target = gather(self.whole_pass(self.domains.target).features)
        # one common length for all features: the critic's slope has a scale to be measured in
        source, target = F.normalize(whole.features, dim=1), F.normalize(target, dim=1)
        critic = train_critic(
            source,
            target,
            self.image_weights[self.image_index] if self.smoothness == "penalty" else None,
            smoothness=self.smoothness,
            steps=s.critic_steps,
            hidden=s.critic_hidden,
            seed=7919 + step,  # not from a running generator: a resumed run trains the same critic
        )
        with torch.no_grad():
            fresh = worst_weights(critic(source)[:, 0], s.rho)
        self.image_weights[self.image_index] = fresh.to(self.image_weights)
        sums = torch.zeros_like(self.class_mean).index_add_(0, whole.labels, fresh.to(self.class_mean))
        counts = torch.bincount(whole.labels, minlength=self.classes).clamp_min(1).to(sums)
        self.class_mean.copy_(scale_weights(sums / counts, "mean-one"))
        self.gap.fill_(critic_gap(critic, source, target, fresh))


def worst_weights(values: Tensor, rho: float) -> Tensor:
    """Return ``argmin_w  w . values`` over ``w >= 0, sum w = n, |w - 1|^2 <= rho n``, for ``values`` [n].

    The conditions of optimality say ``w_i = max(0, tau - theta * values_i)``. With the m smallest values c active,
    ``tau = (n + theta * C1) / m`` and the sphere gives ``theta^2 = ((1 + rho) n - n^2 / m) / (C2 - C1^2 / m)`` with
    C1 and C2 the sums of c and of c^2, so one pass over m = 1..n finds the only m whose weights end where the next
    value begins. If all of the mass may sit on the smallest values, it does, evenly.

    Exact up to rounding, O(n log n), float64 inside. Differs from the papers: they call a cone solver.
    """
    vector("values", values)
    arguments.number("rho", rho, least=0)
    if len(values) == 0:
        raise InvalidArgument("weights need the value of one image or more", argument="values", given="0 values")
    n = len(values)
    c, order = values.detach().double().sort()
    c = c - c[0]
    tied = int((c <= 1e-12 * float(c[-1])).sum())
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
    weights: Tensor | None = None,
    *,
    smoothness: Smoothness = "penalty",
    steps: int = 200,
    hidden: int = 128,
    seed: int = 0,
) -> nn.Sequential:
    """Return a critic D [n, d] -> [n, 1] that maximises ``mean w_i D(s_i) - mean D(t_j)`` and is about 1-Lipschitz.

    ``smoothness`` is a gradient ``"penalty"`` (AR) or ``"spectral"`` norm of every layer (ARPM). All draws come from
    ``seed``; the global generators are left as they are. The weighted mean is taken over uniformly drawn batches.
    """
    spectral, batch = smoothness == "spectral", 128
    widths = (source.shape[1], hidden, hidden, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            linear = nn.Linear(fan_in, fan_out)
            nn.init.kaiming_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [spectral_norm(linear) if spectral else linear, nn.LeakyReLU(0.01 if spectral else 0.2)]
    critic = nn.Sequential(*layers[:-1]).to(source)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.9, 0.999) if spectral else (0.5, 0.9))
    draw = lambda n: torch.randint(n, (batch,), generator=generator).to(source.device)  # noqa: E731
    with torch.enable_grad():
        for _ in range(steps):
            i, j = draw(len(source)), draw(len(target))
            s, t = source[i], target[j]
            values = critic(s)[:, 0]
            if weights is not None:
                values = values * weights[i].to(s)
            loss = critic(t).mean() - values.mean()
            if not spectral:
                mix = torch.rand(batch, 1, generator=generator).to(s)
                between = (mix * s + (1 - mix) * t).requires_grad_()
                (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
                loss = loss + 10 * (slope.norm(dim=1) - 1).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return critic.eval().requires_grad_(False)


def critic_gap(critic: nn.Module, source: Tensor, target: Tensor, weights: Tensor) -> float:
    """Return ``mean w_i D(s_i) - mean D(t_j)``, the critic's estimate of the weighted Wasserstein distance."""
    with torch.no_grad():
        return float((weights * critic(source)[:, 0]).mean() - critic(target).mean())
