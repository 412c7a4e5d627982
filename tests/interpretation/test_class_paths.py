"""Class paths by hand, groups that exist and groups that do not, layers that separate classes and one that cannot."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from convsmith.errors import InvalidArgument
from convsmith.interpretation import (
    class_paths,
    dendrogram,
    find_routes,
    layer_statistics,
    similarity,
    sub_clusters,
)


@pytest.fixture(scope="module")
def routes(_trained):
    return find_routes(_trained.model, _trained.test_x[:160], labels=_trained.test_y[:160], steps=40)


def with_gates(routes, gates, labels):
    rows = routes[: len(labels)]
    return replace(rows, gates={"a": gates}, labels=labels)


@pytest.mark.parametrize("reduction", ["mean", "frequency", "union", "intersection"])
def test_a_class_path_is_the_reduction_of_its_images(routes, reduction):
    paths = class_paths(routes, reduction=reduction)
    assert paths.labels == tuple(range(10))
    assert sum(paths.counts) == 160
    for row, label in enumerate(paths.labels):
        own = [routes.vector()[i] for i in range(160) if routes.labels[i] == label]
        for node in (0, 20, 70):
            values = [float(v[node]) for v in own]
            positive = [v > 0 for v in values]
            expected = {
                "mean": sum(values) / len(values),
                "frequency": sum(positive) / len(positive),
                "union": float(any(positive)),
                "intersection": float(all(positive)),
            }[reduction]
            assert float(paths.paths[row, node]) == pytest.approx(expected, abs=1e-5)


def test_similarity_is_symmetric_with_ones_and_the_dendrogram_joins_all_classes(routes):
    paths = class_paths(routes)
    for measure in ("cosine", "jaccard"):
        alike = similarity(paths, measure=measure)
        torch.testing.assert_close(alike, alike.T)
        torch.testing.assert_close(alike.diagonal(), torch.ones(10))
        assert similarity(paths, measure=measure, layer="5").shape == (10, 10)
    tree = dendrogram(paths)
    assert tree.shape == (9, 4)
    assert tree[-1, 3] == 10
    assert (np.diff(tree[:, 2]) >= -1e-9).all()


def test_planted_groups_are_found_and_noise_is_called_noise(routes):
    torch.manual_seed(0)
    noise = torch.rand(40, 12)
    labels = torch.zeros(40, dtype=torch.long)
    planted = noise.clone()
    planted[:20, :6] += 2.0
    found = sub_clusters(with_gates(routes, planted, labels))
    assert found.real
    assert len(set(found.groups[:20].tolist())) == len(set(found.groups[20:].tolist())) == 1
    assert not sub_clusters(with_gates(routes, noise, labels)).real


def test_a_layer_that_knows_the_class_separates_and_a_random_one_does_not(routes):
    torch.manual_seed(1)
    labels = torch.arange(120) % 4
    knows = torch.nn.functional.one_hot(labels, 4).float() + 0.1 * torch.rand(120, 4)
    rows = replace(routes[:120], gates={"knows": knows, "noise": torch.rand(120, 4)}, labels=labels)
    clear, noise = layer_statistics(rows)
    assert clear.separability == 1.0
    assert clear.dispersion < 0.2
    assert abs(clear.null_separability - 0.25) < 0.1
    assert noise.separability < 0.4
    assert noise.dispersion > 0.9


def test_leave_one_out_separability_equals_a_loop(routes):
    x, labels = routes.gates["5"].double(), routes.labels
    right = 0
    for row in range(len(x)):
        rest = torch.arange(len(x)) != row
        means = torch.stack([x[rest & (labels == k)].mean(0) for k in range(10)])
        right += int((means - x[row]).norm(dim=1).argmin() == labels[row])
    found = layer_statistics(routes, nulls=2)[-1]
    assert found.separability == pytest.approx(right / len(x))


def test_bad_requests_are_refused(routes):
    with pytest.raises(InvalidArgument, match="frequency"):
        class_paths(routes, reduction="freqency")
    with pytest.raises(InvalidArgument, match="cosine"):
        similarity(class_paths(routes), measure="l2")
    with pytest.raises(InvalidArgument, match="layer has no such"):
        similarity(class_paths(routes), layer="9")
    with pytest.raises(InvalidArgument, match="clusters"):
        sub_clusters(routes[:3], clusters=3)
    with pytest.raises(InvalidArgument, match="nulls"):
        sub_clusters(routes, nulls=0)
    with pytest.raises(InvalidArgument, match="two classes"):
        layer_statistics(routes, torch.zeros(160, dtype=torch.long))
    with pytest.raises(InvalidArgument, match="label"):
        class_paths(routes, torch.zeros(3))
