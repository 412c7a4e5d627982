"""AUROC, proxy A-distance and embeddings on clouds whose answer is known."""

import pytest
import torch
from torch.testing import assert_close

from convsmith.adaptation.evaluation.diagnostics import embed, proxy_a_distance, shared_auroc
from convsmith.errors import InvalidArgument


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        w = torch.randint(0, 4, (9,), generator=g).double()  # with ties
        shared = torch.randperm(9, generator=g)[:4].tolist()
        pairs = [(float(w[i]), float(w[j])) for i in shared for j in range(9) if j not in shared]
        right = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
        assert_close(shared_auroc(w, shared), right / len(pairs))
    assert shared_auroc(torch.tensor([3.0, 2.0, 0.1, 0.0]), (0, 1)) == 1.0
    with pytest.raises(InvalidArgument, match="shared and outlier"):
        shared_auroc(torch.ones(3), (0, 1, 2))
    with pytest.raises(InvalidArgument, match="finite"):
        shared_auroc(torch.tensor([1.0, float("nan"), 0.0]), (0,))
    with pytest.raises(InvalidArgument, match="argument: weights"):
        shared_auroc([1.0, 2.0], (0,))


def test_proxy_a_distance_is_zero_for_one_cloud_and_two_for_separate_ones():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(800, 5, generator=g), torch.randn(800, 5, generator=g)
    assert abs(proxy_a_distance(a, b)) < 0.25
    assert proxy_a_distance(a, b + 8) == 2.0
    assert 0.3 < proxy_a_distance(a, b + 0.4) < 1.7
    with pytest.raises(InvalidArgument, match="four images"):
        proxy_a_distance(a[:2], b)


def test_embedding_keeps_clusters_apart_and_repeats():
    g = torch.Generator().manual_seed(0)
    source = torch.cat([torch.randn(30, 4, generator=g), torch.randn(30, 4, generator=g) + 12])
    target = torch.randn(30, 4, generator=g)
    left, right, rows, others = embed(source, target)
    assert left.shape == (60, 2)
    assert right.shape == (30, 2)
    assert rows.tolist() == list(range(60))
    assert others.tolist() == list(range(30))
    near, far = left[:30].mean(0), left[30:].mean(0)
    assert float((right - near).norm(dim=1).mean()) < float((right - far).norm(dim=1).mean())
    assert_close(embed(source, target)[0], left)
