"""Numbers that explain a run: weights against the truth, how far the domains are apart, and a plot of the features.

Ben-David et al., Analysis of Representations for Domain Adaptation, NeurIPS 2006 (proxy A-distance); van der Maaten &
Hinton, JMLR 2008 (t-SNE).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convsmith.adaptation.losses.operands import pair, vector
from convsmith.errors import InvalidArgument


def shared_auroc(weights: Tensor, shared: Sequence[int]) -> float:
    """Return how well class ``weights`` [K] rank the classes the target holds above the others: AUROC in [0, 1].

    Needs the truth: a diagnosis, no score.
    """
    from sklearn.metrics import roc_auc_score

    vector("weights", weights)
    if not bool(torch.isfinite(weights).all()):
        raise InvalidArgument("weights are finite", argument="weights", given=weights.tolist()[:5])
    inside = torch.zeros(len(weights), dtype=torch.bool)
    inside[list(shared)] = True
    if not 0 < int(inside.sum()) < len(weights):
        rule = "AUROC needs shared and outlier classes"
        raise InvalidArgument(rule, argument="shared", given=f"{int(inside.sum())} of {len(weights)}")
    return float(roc_auc_score(inside.numpy(), weights.detach().double().cpu().numpy()))


def proxy_a_distance(source: Tensor, target: Tensor, *, seed: int = 0, limit: int = 2000) -> float:
    """Return ``2 (1 - 2 error)`` of a linear domain classifier on held-out halves of features [n, d] and [m, d].

    0 where the domains cannot be told apart (slightly negative by chance), 2 where they always can. Both sides are cut
    to the same number of images, at most ``limit``.
    """
    from sklearn.linear_model import LogisticRegression

    source, target = pair(source, target)
    count = min(len(source), len(target), limit) // 2
    if count < 2:
        raise InvalidArgument("the distance needs four images a side", given=f"{len(source)} and {len(target)}")
    generator = torch.Generator().manual_seed(seed)
    sides = [x[torch.randperm(len(x), generator=generator)[: 2 * count]].double() for x in (source, target)]
    train, test = (torch.cat([s[i * count : (i + 1) * count] for s in sides]) for i in (0, 1))
    mean, std = train.mean(0), train.std(0).clamp_min(1e-8)
    labels = torch.arange(2).repeat_interleave(count).numpy()
    model = LogisticRegression(max_iter=500).fit(((train - mean) / std).cpu().numpy(), labels)
    error = 1 - float(model.score(((test - mean) / std).cpu().numpy(), labels))
    return 2 * (1 - 2 * error)


def embed(source: Tensor, target: Tensor, *, seed: int = 0, limit: int = 400) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the t-SNE of both sides in one plane: points [n, 2], [m, 2] and the rows they belong to [n], [m]."""
    from sklearn.manifold import TSNE

    source, target = pair(source, target)
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(len(x), generator=generator)[:limit].sort().values for x in (source, target)]
    both = torch.cat([source[rows[0]], target[rows[1]]]).double().cpu().numpy()
    if len(both) < 4:
        raise InvalidArgument("an embedding needs four images", given=len(both))
    perplexity = min(30.0, (len(both) - 1) / 3)
    plane = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(both)
    points = torch.from_numpy(plane).float()
    return points[: len(rows[0])], points[len(rows[0]) :], rows[0], rows[1]
