"""Cached maps of a pretrained network in place of images, for studies that train its end only.

The emoji of one style, or the stamps, pass through EfficientNet-Lite0 up to its last convolution once; the studies
train from there on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument
from convsmith.pooling import POOLINGS
from experiments.datasets import backbone, stamps

#: where `python -m experiments data emoji` puts the pictures if it is not told otherwise
ROOT = Path("runs/emoji")
STAMPS_ROOT = Path("runs/stamps")
#: no class gives more pictures than this: flags alone would be a sixth of all
MOST = 60
#: channels of the maps: what enters the network's last convolution
CHANNELS = 320


@dataclass(frozen=True, eq=False)
class Maps:
    """What the loaders ask of a split. Shapes: ``maps`` [N, C, H, W] float32, ``labels`` and ``index`` [N]."""

    maps: Tensor
    labels: Tensor
    index: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.maps)

    def fetch(self, positions: Any, *, key: tuple[int, int] | None = None) -> Batch:
        """Return a batch; maps know no augmentation, ``key`` means nothing here."""
        chosen = torch.as_tensor(positions)
        return Batch(self.maps[chosen], self.labels[chosen], self.index[chosen])

    def subset(self, rows: Tensor) -> Maps:
        """Return the maps at ``rows``."""
        return replace(self, maps=self.maps[rows], labels=self.labels[rows], index=self.index[rows])

    def of_classes(self, classes: tuple[int, ...]) -> Maps:
        """Return the maps of some classes, labels as they were."""
        return self.subset(torch.isin(self.labels, torch.tensor(classes)).nonzero()[:, 0])

    def without_labels(self) -> Maps:
        """Return the same maps with every label -1."""
        return replace(self, labels=torch.full_like(self.labels, -1))


@lru_cache(maxsize=2)
def emoji_maps(
    style: str, *, root: Path = ROOT, stride: int = 1, progress: Callable[[int, int, str], None] | None = None
) -> Maps:
    """Return what enters the last convolution for one style: at most `MOST` pictures a class, [N, 320, H, W].

    ``index`` numbers the pictures over all classes and is the same in every style. ``stride`` 2 keeps every second row
    and column of the 7 x 7 positions: the same network seen at fewer places.
    """
    folder = root / "styles" / style
    if not folder.is_dir():
        raise InvalidArgument(
            "the emoji pictures are not there",
            argument="emoji",
            given=str(folder),
            hint=f"python -m experiments data emoji --least 12 --out {root}",
        )
    return _ends(folder, root / f"maps-{style}.safetensors", stride, MOST, progress)


@lru_cache(maxsize=2)
def stamp_maps(*, root: Path = STAMPS_ROOT, stride: int = 1) -> tuple[Maps, Maps]:
    """Return photographs and drawings of stamps alike; the classes that have drawings come first in both."""
    classes = stamps.DRAWN + stamps.ONLY_PHOTOGRAPHED
    found = []
    for folder in stamps.write_folders(root):
        own = _ends(folder, root / f"maps-{folder.name}.safetensors", stride)
        numbers = torch.tensor([classes.index(name) for name in own.classes])
        found.append(replace(own, labels=numbers[own.labels], classes=classes))
    return found[0], found[1]


def _ends(
    folder: Path,
    cache: Path,
    stride: int,
    most: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Maps:
    """Return what enters the last convolution for the pictures of ``folder``, at most ``most`` of a class."""
    maps, labels, classes, _ = backbone.maps(folder, cache, progress=progress)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    kept = torch.cat([order[labels[order] == k][:most] for k in range(len(classes))]).sort().values
    stage = backbone.pretrained().blocks[-1]
    with torch.inference_mode():
        found = [stage(part.float())[:, :, ::stride, ::stride].clone() for part in maps[kept].split(64)]
    return Maps(torch.cat(found).clone(), labels[kept].clone(), kept, tuple(classes))


def divided(maps: Maps, share: float, seed: int) -> tuple[Maps, Maps]:
    """Divide every class at random: about ``share`` of its pictures on the second side, at least one on each."""
    order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(seed))
    first, second = [], []
    for k in maps.labels.unique().tolist():
        rows = order[maps.labels[order] == k]
        cut = min(len(rows) - 1, max(1, round(share * len(rows))))
        second.append(rows[:cut])
        first.append(rows[cut:])
    return tuple(maps.subset(torch.cat(side).sort().values) for side in (first, second))  # type: ignore[return-value]


class HeadOnMaps(nn.Module):
    """The pretrained network from its last convolution on: [B, 320, H, W] -> logits through a bottleneck, all trained.

    The bottleneck is what DANN and its successors put before the classifier of a pretrained network; normalised, as
    public codes have it today: a plain linear layer let DANN's features grow without end.
    """

    def __init__(
        self, num_classes: int, bottleneck: int = 256, pooling: str = "average", dim: int | None = None
    ) -> None:
        super().__init__()
        model = backbone.pretrained()
        self.conv, self.norm = model.conv_head, model.bn2
        self.pooling = POOLINGS.entry(pooling).value(model.num_features, dim=dim)
        self.bottleneck = nn.Sequential(
            nn.Linear(self.pooling.out_features, bottleneck), nn.BatchNorm1d(bottleneck), nn.ReLU()
        )
        self.classifier = nn.Linear(bottleneck, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K]."""
        return self.classifier(self.bottleneck(self.pooling(self.norm(self.conv(x)))))
