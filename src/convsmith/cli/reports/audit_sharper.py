"""Sharper: does a head on second-order statistics of the same frozen features beat a head on their average?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from torch import Tensor

from convsmith.cli.reports.audit_subject import Chapter, Subject, interval_bars, percent, rightly, wilson
from convsmith.pooling import isqrt_covariance, triu_vector
from convsmith.report import Section, Table
from convsmith.training import bootstrap_interval

TITLE = "Sharper: second-order pooling"
#: channels after the projection whose covariance is taken
DIM = 64


def run(subject: Subject) -> Chapter:
    """Cross-validate two ridge heads on frozen features of the labelled images."""
    chosen = subject.labelled
    if chosen is None:
        return Chapter(absent="DATA has no labels; put the images into one folder a class")
    labels = chosen.labels.numpy()
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    if len(counts) < 2 or counts.min() < 3:
        return Chapter(absent="every class needs three images or more, and there must be two classes")
    maps = subject.maps(chosen)
    if maps.shape[2] < 4:
        return Chapter(absent=f"the last feature map has {maps.shape[2]} positions; second-order statistics need four")
    subject.progress(0, 2, "head on the average")
    head = RidgeClassifierCV(np.logspace(-1, 5, 7))
    right = {"average": rightly(head, maps.mean(2), labels, subject.seed)}
    subject.progress(1, 2, "head on second-order statistics")
    right["second order"] = rightly(head, _second_order(maps), labels, subject.seed)
    difference = torch.from_numpy(right["second order"].astype(float) - right["average"])
    low, high = bootstrap_interval(difference, subject.seed, resamples=2000)
    gain = float(difference.mean())
    shares = {name: wilson(float(values.sum()), len(labels)) for name, values in right.items()}
    interval = f"{100 * gain:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    if low > 0:
        sentence = f"Second-order pooling reads more from the same features: {interval} of accuracy."
    elif high < 0:
        sentence = f"The average is better here: second-order pooling changes accuracy by {interval}."
    else:
        sentence = f"Second-order pooling is not better within the interval: {interval} of accuracy."
    data = subject.words["labelled"]
    command = f"convsmith train {subject.words['start']} --data {data}" + (" --pooling isqrt-cov" if low > 0 else "")
    section = Section(
        TITLE,
        [
            sentence,
            f"Two ridge heads, cross-validated in five parts on {len(labels)} images of {len(counts)} classes of "
            f"{chosen.description.source}: one on the average of the last feature map ({maps.shape[1]} channels, "
            f"{maps.shape[2]} positions), one on the square root of the covariance of {min(DIM, maps.shape[1])} "
            "principal channels. The network itself is not trained. The interval resamples images, in pairs.",
        ],
        [Table(["head", "accuracy (95 % interval)"], [[n, percent(s)] for n, s in shares.items()])],
        [interval_bars(shares, "accuracy, %", "Accuracy of the two heads with 95 % intervals.")],
    )
    facts: dict[str, Any] = {"images": len(labels), "gain": gain, "low": float(low), "high": float(high)}
    facts |= {name: share[0] for name, share in shares.items()}
    return Chapter(sentence, f"{interval} of accuracy", command, facts=facts, section=section)


def _second_order(maps: Tensor) -> Tensor:
    """Return the half-vectorised root of the covariance of the principal channels, [N, d (d + 1) / 2]."""
    columns = maps.transpose(1, 2).flatten(0, 1)
    centred = columns - columns.mean(0)
    generator = torch.Generator().manual_seed(0)
    some = centred[torch.randperm(len(centred), generator=generator)[:4096]]
    basis = torch.linalg.svd(some, full_matrices=False).Vh[:DIM]
    reduced = torch.einsum("dc,ncm->ndm", basis, maps)
    scale = reduced.std().clamp(min=1e-12)
    return triu_vector(isqrt_covariance((reduced / scale).unsqueeze(-1)))
