"""An attack that knows of the detector: fool the network while the detector, or what it looks at, sees a clean image.

Trees are not differentiable and neither is the choice of the best gates. Two ways round that: match what gates are
computed from (the activations, or the derivatives of the class by the gates) to a clean image's, which has gradients
and needs no access to the detector; and ask the detector itself, many times, which of two fooling images it likes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from convsmith.arguments import integer, number, one_of
from convsmith.errors import InvalidArgument
from convsmith.inspection.outputs import class_scores
from convsmith.interpretation.attacks import ATTACKS, AttackSetting, eight_bit
from convsmith.interpretation.comparators import mean_activations
from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.sites import SitePlan, SiteRule, plan_sites
from convsmith.interpretation.solvers.problem import lead

MATCHES = ("activations", "contributions")
#: share of the pixels that one proposal of the search changes: at first, at last
_FIRST, _LAST = 0.3, 0.03


@ATTACKS.register("adaptive", steps=50)
def _adaptive(
    setting: AttackSetting,
    pixels: Tensor,
    labels: Tensor,
    *,
    match: str = "activations",
    weight: float = 1.0,
    margin: float = 3.0,
    guide: Tensor | None = None,
    sites: str | SiteRule = "auto",
    score: Callable[[Tensor], Tensor] | None = None,
    queries: int = 100,
) -> Tensor:
    """Signed steps on margin plus distance to a clean image inside the network, then a search by the detector's score.

    First every image minimises ``relu(m + margin) + weight * sum over layers of ||s(x') - s(r)||^2 / ||s(r)||^2``
    inside the ball, m the lead of the class it should lose (targeted: of the best other class over the target). s is by
    ``match`` the mean activation of every gated channel, or with ``"contributions"`` the derivative of the predicted
    class's logit by every gate (activation x gradient). r is the image itself before the attack, or its row of
    ``guide`` (normalised as the images): a clean image of another class makes a feature adversary (Sabour et al. 2016).
    The fooling point of the lowest loss is kept, else the one closest to fooling.

    Args:
        setting: what every attack gets beside them.
        pixels: [B, C, H, W] in [0, 1].
        labels: [B].
        match: "activations" or "contributions", what is brought close to the clean image.
        weight: of the distance inside the network, 0 or more.
        margin: lead that is wanted in logits.
        guide: a clean image of another class for every image; none is the image itself.
        sites: layers that are compared, as in `find_routes`.
        score: the detector to be passed, images to scores; none leaves the search out.
        queries: calls of the detector, 0 or more.

    Then, if ``score`` is given (normalised images [B, C, H, W] -> [B], higher is more adversarial), ``queries`` random
    proposals change ever fewer pixels to other values of the ball, on the 8-bit grid; one that still fools the network
    and does not raise the score is taken (random search as in Andriushchenko et al. 2020).
    """
    one_of("match", match, MATCHES)
    number("weight", weight, least=0)
    number("margin", margin, least=0)
    integer("queries", queries, least=0)
    if guide is not None and guide.shape != pixels.shape:
        raise InvalidArgument("one guide per image", argument="guide", given=tuple(guide.shape))
    model = setting.model
    plan = plan_sites(model, setting.normalise(pixels), sites)

    def inside(images: Tensor) -> tuple[Tensor, Tensor]:
        with GatedNetwork(model, plan, images.detach(), cache=False) as network:
            network.images = images
            if match == "contributions":
                return _contributions(network)
            logits = network.logits(watch=True)
            return logits, mean_activations(network)

    with torch.enable_grad():
        reference = (setting.normalise(pixels) if guide is None else guide.to(pixels)).clone().requires_grad_(True)
        wanted = inside(reference)[1].detach()
    low, high = (pixels - setting.epsilon).clamp(0, 1), (pixels + setting.epsilon).clamp(0, 1)
    noise = torch.rand(pixels.shape, generator=setting.generator).to(pixels) * 2 - 1
    point = (pixels + setting.epsilon * noise).clamp(0, 1)
    best, lowest = point, torch.full((len(pixels),), torch.inf, device=pixels.device, dtype=pixels.dtype)
    for step in range(setting.steps + 1):
        with torch.enable_grad():
            point = point.detach().requires_grad_(True)
            logits, found = inside(setting.normalise(point))
            ahead = _lead(logits, labels, setting.targeted)
            loss = (ahead + margin).relu() + weight * _distance(found, wanted, plan)
            (slope,) = torch.autograd.grad(loss.sum(), point)
        with torch.no_grad():
            # points that fool come first, the one of the lowest loss before the others
            rank = torch.where(ahead < 0, loss / (1 + loss), 1 + ahead.clamp(min=0))
            best = torch.where(_each(rank < lowest, point), point, best)
            lowest = torch.minimum(rank, lowest)
            size = setting.step * (1 - step / (setting.steps + 1))  # falling, so that the distance can settle
            point = torch.minimum(torch.maximum(point - size * slope.sign(), low), high)
    best = best.detach()
    return best if score is None else _search(setting, best, pixels, labels, score, queries)


def _search(
    setting: AttackSetting,
    point: Tensor,
    pixels: Tensor,
    labels: Tensor,
    score: Callable[[Tensor], Tensor],
    queries: int,
) -> Tensor:
    """Lower the detector's score by random changes that go on fooling the network."""

    def look(points: Tensor) -> tuple[Tensor, Tensor]:
        images = setting.normalise(points)
        with torch.no_grad():
            fools = _lead(class_scores(setting.model(images)), labels, setting.targeted) < 0
        return fools, score(images).to(points)

    generator = setting.generator
    point = eight_bit(point, pixels, setting.epsilon)
    fooled, lowest = look(point)
    for query in range(queries):
        share = _FIRST * (_LAST / _FIRST) ** (query / max(queries - 1, 1))
        chosen = torch.rand(pixels.shape, generator=generator).to(pixels) < share
        change = (torch.rand(pixels.shape, generator=generator).to(pixels) * 2 - 1) * setting.epsilon
        trial = eight_bit(torch.where(chosen, (pixels + change).clamp(0, 1), point), pixels, setting.epsilon)
        fools, value = look(trial)
        better = (fools & ~fooled) | ((fools == fooled) & (value <= lowest))
        point = torch.where(_each(better, point), trial, point)
        fooled, lowest = torch.where(better, fools, fooled), torch.where(better, value, lowest)
    return point


def _each(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(-1, *([1] * (like.dim() - 1)))


def _lead(logits: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    """By how much the class to lose leads [B] (targeted: the best other class over the target); negative is fooled."""
    ahead = lead(logits, labels[:, None])
    return -ahead if targeted else ahead


def _distance(found: Tensor, wanted: Tensor, plan: SitePlan) -> Tensor:
    parts = zip(found.split(plan.widths, 1), wanted.split(plan.widths, 1), strict=True)
    return torch.stack([(a - b).square().sum(1) / b.square().sum(1).clamp(min=1e-12) for a, b in parts]).sum(0)


def _contributions(network: GatedNetwork) -> tuple[Tensor, Tensor]:
    gates = network.images.new_ones(len(network.images), network.plan.total).requires_grad_(True)
    logits = network.logits(gates)
    (slope,) = torch.autograd.grad(logits.amax(1).sum(), gates, create_graph=True)
    return logits, slope
