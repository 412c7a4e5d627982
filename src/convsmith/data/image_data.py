"""A whole data set: one description, three splits, and what had to be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from convsmith.data.description import DataDescription
from convsmith.data.source import BrokenFile
from convsmith.data.split import ImageSplit


@dataclass(frozen=True, eq=False)
class ImageData:
    """What `load` returns.

    ``train`` alone carries the augmentation. ``skipped`` lists the broken files that ``broken="skip"`` passed over,
    ``notes`` everything else that is not used, in words.
    """

    description: DataDescription
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    skipped: tuple[BrokenFile, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in label order."""
        return self.description.classes

    @property
    def splits(self) -> dict[str, ImageSplit]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def map(self, **changed: ImageSplit) -> ImageData:
        """Return the data with some splits replaced; the description follows the train split and the new counts."""
        splits = {**self.splits, **changed}
        counts = {name: len(split) for name, split in splits.items()}
        description = replace(splits["train"].description, counts=counts)
        train, validation, test = (replace(split, description=description) for split in splits.values())
        return replace(self, description=description, train=train, validation=validation, test=test)

    def of_classes(self, classes: Sequence[int]) -> ImageData:
        """Return the data with images of these classes only; the numbering of the classes stays."""
        return self.map(**{name: split.of_classes(classes) for name, split in self.splits.items()})

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """Return the data normalised by other statistics, one number per channel."""
        return self.map(**{name: split.with_normalisation(mean, std) for name, split in self.splits.items()})
