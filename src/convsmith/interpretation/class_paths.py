"""Routes of whole classes: paths, how alike classes are, groups of classes, and groups inside one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsmith.arguments import checked, integer, one_of
from convsmith.errors import InvalidArgument
from convsmith.interpretation.find import _column
from convsmith.interpretation.routes import Routes
from convsmith.interpretation.search import alike


@dataclass(frozen=True)
class ClassPaths:
    """``paths`` [K, total] of the classes ``labels`` (with images), ``counts`` images each, ``layers`` and widths."""

    paths: Tensor
    labels: tuple[int, ...]
    counts: tuple[int, ...]
    layers: tuple[str, ...]
    widths: tuple[int, ...]
    reduction: str


@checked
def class_paths(routes: Routes, labels: Tensor | None = None, *, reduction: str = "mean") -> ClassPaths:
    """Reduce the routes of each class to one path.

    ``reduction``: ``"mean"`` gate, ``"frequency"`` share of images whose gate is positive, ``"union"`` /
    ``"intersection"`` 1.0 where any / every image's gate is. ``labels`` [B] default to the routes' own, else to the
    predictions.

    Examples:
        >>> paths = class_paths(find_routes(model, images, steps=5), labels)
    """
    one_of("reduction", reduction, ("mean", "frequency", "union", "intersection"))
    labels = _labels(routes, labels)
    values, names = routes.vector(), labels.unique().tolist()
    if reduction != "mean":
        values = (values > 0).to(values.dtype)
    reduce = {"union": torch.amax, "intersection": torch.amin}.get(reduction, torch.mean)
    rows = [reduce(values[labels == label], dim=0) for label in names]
    widths = tuple(g.shape[1] for g in routes.gates.values())
    counts = tuple(int((labels == label).sum()) for label in names)
    return ClassPaths(torch.stack(rows), tuple(names), counts, routes.layers, widths, reduction)


@checked
def similarity(paths: ClassPaths, *, measure: str = "cosine", layer: str | None = None) -> Tensor:
    """Return how alike classes are, [K, K] with ones on the diagonal; ``"jaccard"`` compares positive nodes.

    Examples:
        >>> alike = similarity(class_paths(find_routes(model, images, steps=5), labels))
    """
    values = paths.paths
    if layer is not None:
        one_of("layer", layer, paths.layers)
        values = values.split(paths.widths, dim=1)[paths.layers.index(layer)]
    return alike(values, values, measure).clamp(-1, 1).fill_diagonal_(1.0)


@checked
def dendrogram(paths: ClassPaths, *, layer: str | None = None) -> NDArray[np.float64]:
    """Return SciPy's average-linkage matrix [K - 1, 4] of the classes by cosine distance, as its dendrogram takes it.

    Examples:
        >>> tree = dendrogram(class_paths(find_routes(model, images, steps=5), labels))
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    if len(paths.labels) < 2:
        raise InvalidArgument("a dendrogram needs two classes", given=len(paths.labels))
    distance = (1 - similarity(paths, layer=layer)).double().clamp(min=0).cpu().numpy()
    np.fill_diagonal(distance, 0.0)
    return np.asarray(linkage(squareform(distance, checks=False), method="average"))


@dataclass(frozen=True)
class SubClusters:
    """Groups [B] inside one class; ``silhouette`` of them, and the mean and 95th percentile of the null's.

    ``real``: the silhouette lies above the null's 95th percentile; otherwise the groups are what clustering makes of
    noise.
    """

    groups: Tensor
    silhouette: float
    null_mean: float
    null_high: float

    @property
    def real(self) -> bool:
        """Tell whether the groups are more than clustering makes of independent columns."""
        return self.silhouette > self.null_high


@checked
def sub_clusters(routes: Routes, clusters: int = 2, *, nulls: int = 20, seed: int = 0) -> SubClusters:
    """Split the routes of one class into groups by agglomerative clustering (Ward), and say if they are real.

    The null permutes every column on its own, which keeps each gate's distribution and destroys what gates share, and
    is clustered alike. Columns that never vary are left out.

    Examples:
        >>> groups = sub_clusters(find_routes(model, images, steps=5))
    """
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import silhouette_score

    integer("nulls", nulls, least=1)
    integer("seed", seed, least=0)
    x = routes.vector().detach().cpu().double().numpy()
    x = x[:, x.std(0) > 0]
    if not 2 <= clusters < len(x) or not x.shape[1]:
        raise InvalidArgument(
            "clusters are at least 2 and fewer than the images, and gates must vary",
            argument=f"{clusters} clusters",
            given=f"{len(x)} images, {x.shape[1]} varying gates",
        )

    def split(values: NDArray[Any]) -> tuple[NDArray[Any], float]:
        groups = AgglomerativeClustering(clusters).fit_predict(values)
        return groups, float(silhouette_score(values, groups))

    groups, score = split(x)
    random = np.random.default_rng(seed)
    null = [split(random.permuted(x, axis=0))[1] for _ in range(nulls)]
    return SubClusters(torch.from_numpy(groups), score, float(np.mean(null)), float(np.percentile(null, 95)))


@dataclass(frozen=True)
class LayerStatistics:
    """One layer: ``dispersion`` (mean distance to the class mean over mean distance to the overall mean; 1 = classes
    say nothing), ``separability`` (leave-one-out nearest-class-mean accuracy) and the ``null_*`` under shuffled labels.
    """

    layer: str
    critical_share: float
    dispersion: float
    separability: float
    null_separability: float
    null_high: float


@checked
def layer_statistics(
    routes: Routes, labels: Tensor | None = None, *, nulls: int = 20, seed: int = 0
) -> list[LayerStatistics]:
    """Return dispersion and class separability of the gates, layer by layer, against shuffled labels.

    Examples:
        >>> rows = layer_statistics(find_routes(model, images, steps=5), labels)
    """
    integer("nulls", nulls, least=0)
    labels = _labels(routes, labels).cpu()
    if len(labels.unique()) < 2:
        raise InvalidArgument("separability needs two classes", given=len(labels.unique()))
    generator = torch.Generator().manual_seed(seed)
    shuffles = [labels[torch.randperm(len(labels), generator=generator)] for _ in range(nulls)]
    found = []
    for name, gates in routes.gates.items():
        x = gates.detach().cpu().double()
        within, accuracy = _nearest_mean(x, labels)
        null = torch.tensor([_nearest_mean(x, other)[1] for other in shuffles])
        overall = (x - x.mean(0)).norm(dim=1).mean().clamp(min=1e-12)
        found.append(
            LayerStatistics(
                name,
                float((x > 0).double().mean()),
                float(within / overall),
                float(accuracy),
                float(null.mean()) if nulls else float("nan"),
                float(null.quantile(0.95)) if nulls else float("nan"),
            )
        )
    return found


def _nearest_mean(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean distance to the own class mean, and accuracy of the nearest mean with each row left out of its own."""
    classes, place = labels.unique(return_inverse=True)
    onehot = torch.nn.functional.one_hot(place, len(classes)).to(x)
    counts = onehot.sum(0)
    means = onehot.T @ x / counts[:, None]
    within = (x - means[place]).norm(dim=1).mean()
    distance = torch.cdist(x, means)
    # leaving row i out moves its class mean away from it by the factor n / (n - 1)
    own = counts[place]
    left_out = torch.where(own > 1, distance[torch.arange(len(x)), place] * own / (own - 1).clamp(min=1), torch.inf)
    distance[torch.arange(len(x)), place] = left_out
    return within, (distance.argmin(1) == place).double().mean()


def _labels(routes: Routes, labels: Tensor | None) -> Tensor:
    if labels is None:
        labels = routes.prediction if bool((routes.labels < 0).any()) else routes.labels
    return _column(labels, len(routes), None, "labels").to(routes.prediction.device)
