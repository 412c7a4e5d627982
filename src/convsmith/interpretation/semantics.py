"""Units with names: topics from text, a loss that ties features to them, and labels of single units with a control.

Dong, Su, Zhu, Zhang, "Improving Interpretability of Deep Neural Networks with Semantic Information", CVPR 2017
(arXiv 1703.04096). Differs from the paper: any encoder of images in place of the video captioner, LDA or NMF of any
text, and the score of a label on held-out images beside that of shuffled topics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from convsmith.arguments import checked, integer, number, one_of
from convsmith.errors import InvalidArgument, refusing

#: scikit-learn counts these among the words without meaning; in a caption they often are its meaning
_NUMBERS = frozenset(
    ("one", "two", "three", "four", "five", "six", "eight", "nine", "ten", "eleven", "twelve", "twenty")
)


@dataclass(frozen=True)
class Topics:
    """``present`` [N, K] float 0/1: which topics each text is about; ``words`` the strongest words of each topic."""

    present: Tensor
    words: tuple[tuple[str, ...], ...]

    @property
    def count(self) -> int:
        """Number of topics."""
        return len(self.words)


@checked
def topics_from_text(
    texts: Sequence[str], count: int = 10, *, method: str = "nmf", words: int = 5, share: float = 0.2, seed: int = 0
) -> Topics:
    """Mine ``count`` topics from one text per image and tell which texts are about which.

    ``method``: ``"lda"`` (latent Dirichlet allocation of word counts) or ``"nmf"`` (of tf-idf). A text is about a topic
    whose weight is at least ``share`` of the text's total.

    Examples:
        >>> topics = topics_from_text(["red car", "red bus", "blue sea", "blue sky"], 2, words=2)
    """
    from sklearn.decomposition import NMF, LatentDirichletAllocation
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer, TfidfVectorizer

    one_of("method", method, ("lda", "nmf"))
    if len(texts) < 2 or count < 1:
        raise InvalidArgument("topics need texts", argument=f"{count} topics", given=f"{len(texts)} texts")
    stop = sorted(ENGLISH_STOP_WORDS - _NUMBERS)
    vectorizer = (CountVectorizer if method == "lda" else TfidfVectorizer)(stop_words=stop)
    with refusing("the texts hold no words to count", ValueError):
        table = vectorizer.fit_transform(texts)
    if count > min(table.shape):
        rule, given = "there are no more topics than texts and words", f"{table.shape[0]} texts, {table.shape[1]} words"
        raise InvalidArgument(rule, argument=f"{count} topics", given=given)
    model = (
        LatentDirichletAllocation(count, random_state=seed)
        if method == "lda"
        else NMF(count, init="nndsvda", random_state=seed, max_iter=1000)
    )
    weight = model.fit_transform(table)
    weight = weight / np.maximum(weight.sum(1, keepdims=True), 1e-12)
    vocabulary = vectorizer.get_feature_names_out()
    named = tuple(tuple(vocabulary[k] for k in row.argsort()[::-1][:words]) for row in model.components_)
    return Topics(torch.from_numpy((weight >= share).astype(np.float32)), named)


class InterpretiveLoss(nn.Module):
    """The interpretive loss ``weight * mean_b || g(v_b) - s_b ||^2`` of features ``v`` [B, D] and topics ``s`` [B, K].

    ``g`` is one hidden layer of ``hidden`` units with a sigmoid output, trained with the encoder; ``hidden=0`` makes it
    linear with a sigmoid. Features [B, D, H, W] or [B, N, D] are averaged over positions first. Add it to the task's
    loss.
    """

    def __init__(self, features: int, topics: int, hidden: int = 128, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight
        self.head: nn.Module = (
            nn.Linear(features, topics)
            if hidden == 0
            else nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, topics))
        )

    def predict(self, features: Tensor) -> Tensor:
        """Return topic activations [B, K] in (0, 1)."""
        return self.head(pooled(features)).sigmoid()

    def forward(self, features: Tensor, topics: Tensor) -> Tensor:
        """Return the scalar loss."""
        return self.weight * (self.predict(features) - topics).square().sum(1).mean()


def pooled(features: Tensor) -> Tensor:
    """Average features [B, D, H, W] or [B, N, D] over positions; [B, D] stays."""
    if features.dim() == 4:
        return features.mean((2, 3))
    if features.dim() == 3:
        return features.mean(1)
    if features.dim() != 2:
        raise InvalidArgument("features are [B, D], [B, N, D] or [B, D, H, W]", given=tuple(features.shape))
    return features


@checked
def prediction_difference(
    head: Callable[[Tensor], Tensor],
    features: Tensor,
    units: Sequence[int] | Tensor | None = None,
    *,
    removal: str = "zero",
    top: float = 1.0,
    batch_size: int = 4096,
) -> Tensor:
    """Return D [U, K]: how much each unit carries each topic.

    ``D[i, t] = mean over images b where unit i is strongest of  g_t(v_b) - g_t(v_b without unit i)``; strongest are the
    ``top`` share of images by the unit's value (1.0: all). ``removal``: the unit becomes ``"zero"`` or its ``"mean"``.
    A linear head has the closed form ``w[t, i] * (v[b, i] - replacement)``, used when ``head`` is an ``nn.Linear``;
    any other head is evaluated on all removals in batches.

    Examples:
        >>> prediction_difference(nn.Linear(6, 3), torch.rand(5, 6)).shape
        torch.Size([6, 3])
    """
    features = pooled(features).detach()
    one_of("removal", removal, ("zero", "mean"))
    number("top", top, above=0, most=1)
    chosen = torch.arange(features.shape[1]) if units is None else torch.as_tensor(units)
    chosen = chosen.to(features.device)
    if chosen.numel() and (chosen.min() < 0 or chosen.max() >= features.shape[1]):
        raise InvalidArgument("no such unit", argument=int(chosen.max()), given=f"{features.shape[1]} units")
    instead = features.mean(0) if removal == "mean" else torch.zeros_like(features[0])
    keep = max(1, round(top * len(features)))
    strongest = features.topk(keep, dim=0).indices  # [keep, D]
    with torch.no_grad():
        if isinstance(head, nn.Linear):
            change = features.gather(0, strongest).mean(0) - instead
            return change[chosen, None] * head.weight.T[chosen]
        full = head(features)
        rows = []
        for unit in chosen.tolist():
            images = strongest[:, unit]
            total = torch.zeros_like(full[0])
            for part in images.split(batch_size):
                without = features[part].clone()
                without[:, unit] = instead[unit]
                total += (full[part] - head(without)).sum(0)
            rows.append(total / keep)
        return torch.stack(rows) if rows else full.new_zeros(0, full.shape[1])


@checked
def label_units(difference: Tensor) -> Tensor:
    """Return [U] int64: the topic each unit carries most.

    Examples:
        >>> label_units(torch.tensor([[0.1, 0.7], [0.4, 0.2]])).tolist()
        [1, 0]
    """
    return difference.argmax(1)


@checked
def revise(features: Tensor, units: Sequence[int] | Tensor, strength: float = 1.0) -> Tensor:
    """Strengthen ``units`` of features [B, D] by ``strength`` times each unit's standard deviation over the batch.

    For images that should be about a topic and are not described so: the user names the topic, `label_units` the units.

    Examples:
        >>> revise(torch.rand(5, 6), [0, 2]).shape
        torch.Size([5, 6])
    """
    number("strength", strength, least=0)
    raised = features.clone()
    columns = torch.as_tensor(units, device=features.device)
    raised[:, columns] = features[:, columns] + strength * features[:, columns].std(0, correction=0)
    return raised


@dataclass(frozen=True)
class LabelScore:
    """How well unit labels hold on images not used to make them.

    ``score``: mean over units of AUC of the unit's value for the presence of its topic; ``null_mean`` and ``null_high``
    (95th percentile) the same with topics shuffled over images; ``units`` counted.
    """

    score: float
    null_mean: float
    null_high: float
    units: int


@checked
def score_labels(features: Tensor, topics: Tensor, labels: Tensor, *, nulls: int = 50, seed: int = 0) -> LabelScore:
    """Score unit ``labels`` [D] on held-out ``features`` [N, D] and ``topics`` [N, K] against shuffled topics.

    Examples:
        >>> score = score_labels(torch.rand(20, 6), torch.rand(20, 3), torch.zeros(6, dtype=torch.long))
    """
    from scipy.stats import rankdata

    integer("nulls", nulls, least=1)
    features, topics = pooled(features).detach().double().cpu(), topics.double().cpu()
    if labels.shape != (features.shape[1],):
        given = tuple(labels.shape)
        raise InvalidArgument("one label per unit", argument=f"labels [{features.shape[1]}]", given=given)
    ranks = torch.from_numpy(rankdata(features.numpy(), axis=0))  # equal values share a rank: rectified ones often are

    def score(present: Tensor) -> Tensor:
        own = present[:, labels.cpu()]
        positive, negative = own.sum(0), (1 - own).sum(0)
        defined = (positive > 0) & (negative > 0) & (features.std(0) > 0)
        area = ((ranks * own).sum(0) - positive * (positive + 1) / 2) / (positive * negative).clamp(min=1)
        return area[defined]

    found = score(topics)
    if not len(found):
        raise InvalidArgument("no unit varies over images with and without its topic", given=f"{len(features)} images")
    generator = torch.Generator().manual_seed(seed)
    shuffled = [score(topics[torch.randperm(len(topics), generator=generator)]).mean() for _ in range(nulls)]
    null = torch.stack(shuffled)
    return LabelScore(float(found.mean()), float(null.mean()), float(null.quantile(0.95)), len(found))
