"""How good a classifier is, and how sure we can be of that: accuracies, confusion, calibration, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convsmith.arguments import checked, integer, wide
from convsmith.data.batch import Batch, check_batch
from convsmith.data.loader import Loader
from convsmith.data.source import Progress
from convsmith.data.split import ImageSplit
from convsmith.errors import InvalidArgument
from convsmith.inspection.modes import copied, evaluating
from convsmith.inspection.outputs import class_scores
from convsmith.training.machine import gather, resolve_device

BINS = 15


@dataclass(frozen=True)
class Metrics:
    """Results of one evaluation; fractions in [0, 1].

    ``per_class`` is None where a class has no image; ``confusion[i][j]`` counts images of class i called j; ``ece`` is
    the expected calibration error over 15 equal bins of confidence; ``calibration`` holds for each bin its images, mean
    confidence and accuracy. ``intervals`` are 95 % bootstrap intervals over images by metric name;
    ``per_class_intervals`` are 95 % Wilson intervals, which stay wide where
    all of a class's few images are right, or none.
    """

    count: int
    top1: float
    top5: float | None
    balanced: float
    per_class: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    ece: float
    cross_entropy: float
    calibration: tuple[tuple[int, float | None, float | None], ...]
    intervals: Mapping[str, tuple[float, float]]
    per_class_intervals: tuple[tuple[float, float] | None, ...]
    resamples: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that JSON can hold."""
        return asdict(self)


@checked
def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device | str | None = None,
    *,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a classifier over batches, in eval mode and without gradients.

    Args:
        model: logits ``[B, K]`` from images; its training mode is put back afterwards.
        batches: any iterable of batches; images take the dtype of the model's parameters.
        device: where to compute; by default where the model's parameters are.
        progress: called after each batch.

    Returns:
        Logits ``[N, K]`` in float32 (float64 of such a network), labels ``[N]`` and image numbers ``[N]``, on the CPU.

    Examples:
        >>> logits, labels, index = predict(model, loader)
    """
    first = next(model.parameters(), None)
    place = (
        resolve_device(str(device))
        if device is not None
        else (first.device if first is not None else torch.device("cpu"))
    )
    if first is not None and (place.type, place.index or 0) != (first.device.type, first.device.index or 0):
        model = copied(model).to(place)
    dtype = first.dtype if first is not None and first.is_floating_point() else None
    logits, labels, index = [], [], []
    total = len(batches) if isinstance(batches, Sized) else 0
    with evaluating(model), torch.no_grad():
        for done, batch in enumerate(batches, 1):
            check_batch(batch)
            logits.append(wide(class_scores(model(batch.images.to(place, dtype, non_blocking=True)))))
            labels.append(batch.labels)
            index.append(batch.index)
            if progress is not None:
                progress(done, max(total, done), "evaluating")
    if not logits:
        return torch.empty(0, 0), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    return torch.cat(logits).cpu(), torch.cat(labels).cpu(), torch.cat(index).cpu()


@checked
def predict_split(
    model: nn.Module,
    split: ImageSplit,
    batch_size: int,
    device: torch.device | str | None = None,
    *,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`predict` over a split in batches of ``batch_size``, each image once, in the split's order.

    ``share`` (`rank_and_world`): every process of a launcher takes whole batches in turn, and all return what one
    process alone would, bit for bit.

    Examples:
        >>> split = from_arrays(images.numpy(), labels.numpy(), normalised=True)
        >>> logits, labels, index = predict_split(model, split, 4)
    """
    rank, world = share
    integer("batch_size", batch_size, least=1)
    if not len(split):
        return predict(model, (), device)
    turn = torch.arange(len(split)) // batch_size % world
    mine = split.subset((turn == rank).nonzero()[:, 0])
    batches = Loader(mine, batch_size, workers=workers) if len(mine) else ()
    parts = [part for part in gather(predict(model, batches, device, progress=progress), world) if len(part[1])]
    place = turn.argsort(stable=True).argsort()
    logits, labels, index = (torch.cat([part[i] for part in parts])[place] for i in range(3))
    return logits, labels, index


@checked
def expected_calibration_error(logits: Tensor, labels: Tensor) -> float:
    """``sum_b n_b / N |accuracy_b - confidence_b|``, 15 equal bins of the top probability; ``[N, K], [N] -> float``.

    Paper: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks" (2017), eq. 3.

    Examples:
        >>> round(expected_calibration_error(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])), 4)
        0.0
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    _check(logits, labels)
    # torchmetrics gives a confidence of exactly 1 a bin of its own, beside the last
    probabilities = wide(logits).softmax(1).clamp(max=1 - 2**-24)
    return float(multiclass_calibration_error(probabilities, labels, logits.shape[1], n_bins=BINS, norm="l1"))


@checked
def classification_metrics(logits: Tensor, labels: Tensor, seed: int = 0, *, resamples: int = 1000) -> Metrics:
    """Evaluate logits ``[N, K]`` against labels ``[N]``.

    Intervals are percentiles (2.5, 97.5) of the metric over ``resamples`` draws of N images with replacement, seeded.
    The calibration error, a sum of absolute values, is larger in every draw than in the sample, and in the sample than
    in truth, by about as much: its upper percentile gives up that bias once, its lower one twice, so that it contains
    the value and, more often than the plain percentiles, the truth.

    Raises:
        InvalidArgument: no image, shapes that do not fit, a label outside 0..K-1, logits that are not finite.

    Examples:
        >>> classification_metrics(torch.eye(4), torch.arange(4)).top1
        1.0
    """
    logits, labels = wide(logits.detach()).cpu(), labels.detach().long().cpu()
    _check(logits, labels)
    if not torch.isfinite(logits).all():
        raise InvalidArgument("logits must be finite", argument="logits", given="nan or inf")
    integer("seed", seed, least=0)
    integer("resamples", resamples, least=1)
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    count, classes = logits.shape
    confusion = multiclass_confusion_matrix(logits.argmax(1), labels, classes)
    per_class_counts = confusion.sum(1)
    right = confusion.diagonal()
    present = per_class_counts > 0
    of_classes = list(zip(right.tolist(), per_class_counts.tolist(), strict=True))
    confidence, called = logits.softmax(1).max(1)
    correct = called == labels
    top5 = (logits.topk(5, dim=1).indices == labels[:, None]).any(1) if classes > 5 else None
    bins = torch.bucketize(confidence, torch.linspace(0, 1, BINS + 1)[1:-1], right=True)
    cross = torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    columns = {"top1": correct.float(), "cross_entropy": cross}
    if top5 is not None:
        columns["top5"] = top5.float()
    one_hot = torch.nn.functional.one_hot(bins, BINS).float()
    gaps = one_hot * (confidence - correct.float())[:, None]
    table = torch.cat([torch.stack(list(columns.values()), 1), gaps], 1).double().numpy()
    drawn = _resample(table, resamples, np.random.default_rng(seed))
    draws = {name: drawn[:, n] for n, name in enumerate(columns)}
    ece, errors = expected_calibration_error(logits, labels), np.abs(drawn[:, len(columns) :]).sum(1)
    class_draws = _class_draws(right.numpy(), per_class_counts.numpy(), resamples, np.random.default_rng(seed + 1))
    there = ~np.isnan(class_draws)
    draws["balanced"] = np.where(there, class_draws, 0).sum(1) / there.sum(1)

    return Metrics(
        count=count,
        top1=int(correct.sum()) / count,
        top5=int(top5.sum()) / count if top5 is not None else None,
        balanced=(right[present] / per_class_counts[present]).mean().item(),
        per_class=tuple(r / n if n else None for r, n in of_classes),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        ece=ece,
        cross_entropy=cross.mean().item(),
        calibration=_calibration(bins, confidence, correct),
        intervals={**{name: _interval(values) for name, values in draws.items()}, "ece": _unbiased(errors, ece)},
        per_class_intervals=tuple(wilson(r, n) if n else None for r, n in of_classes),
        resamples=resamples,
        seed=seed,
    )


@checked
def bootstrap_interval(values: Tensor, seed: int = 0, *, resamples: int = 1000) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``values [N]`` over images drawn with replacement.

    Examples:
        >>> bootstrap_interval(torch.ones(50))
        (1.0, 1.0)
    """
    if values.ndim != 1 or not len(values):
        raise InvalidArgument("needs one value per image", argument="[N], N > 0", given=list(values.shape))
    integer("seed", seed, least=0)
    integer("resamples", resamples, least=1)
    table = values.detach().double().cpu().numpy()[:, None]
    return _interval(_resample(table, resamples, np.random.default_rng(seed))[:, 0])


def _resample(table: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Column means of ``table [N, F]`` over N rows drawn with replacement, ``resamples`` times: ``[R, F]``.

    A draw is a vector of how often each row came up, so that all means are one matrix product; in blocks of at most
    4 million counts.
    """
    count = len(table)
    block = max(1, 4_000_000 // count)
    out = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        rows = rng.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        weights = np.bincount(rows.ravel(), minlength=size * count).reshape(size, count)
        out.append(weights @ table / count)
    return np.concatenate(out)


def _class_draws(right: np.ndarray, total: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Per-class accuracy over resamples, ``[R, K]``; nan where a class was not drawn.

    The counts (right, wrong) of all classes under resampling by image follow one multinomial law; it is drawn directly.
    """
    counts = np.concatenate([right, total - right])
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples)
    good, bad = drawn[:, : len(right)], drawn[:, len(right) :]
    with np.errstate(invalid="ignore"):
        return good / (good + bad)


def wilson(successes: float, count: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion."""
    if count == 0:
        return 0.0, 1.0
    p, z = successes / count, 1.959964
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * ((p * (1 - p) + z * z / (4 * count)) / count) ** 0.5 / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def _unbiased(values: np.ndarray, value: float) -> tuple[float, float]:
    """Interval of a statistic, not negative, whose draws are biased against ``value`` as that is against the truth."""
    low, high = _interval(values)
    bias = max(float(np.median(values)) - value, 0.0)
    return max(0.0, min(low - 2 * bias, value)), max(high - bias, value)


def _calibration(
    bins: Tensor, confidence: Tensor, correct: Tensor
) -> tuple[tuple[int, float | None, float | None], ...]:
    rows: list[tuple[int, float | None, float | None]] = []
    for inside in (bins == b for b in range(BINS)):
        n, means = int(inside.sum()), (confidence[inside].mean().item(), correct[inside].float().mean().item())
        rows.append((n, *means) if n else (0, None, None))
    return tuple(rows)


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.ndim != 1 or len(logits) != len(labels) or not len(labels) or logits.shape[1] < 2:
        rule = "needs logits of two classes or more and one label per image"
        argument = "logits [N, K], labels [N], N > 0, K > 1"
        raise InvalidArgument(rule, argument=argument, given=(list(logits.shape), list(labels.shape)))
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        rule, given = "a label is outside the model's classes", f"{int(labels.min())}..{int(labels.max())}"
        hint = "evaluate on data with the classes the model was trained on"
        raise InvalidArgument(rule, argument=f"0..{logits.shape[1] - 1}", given=given, hint=hint)
