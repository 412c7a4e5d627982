"""Images: embedded sets, folders and other libraries' sets, divided, described, and given out in keyed order."""

from convsmith.data import embedded as embedded  # registers its sources
from convsmith.data.arrays import from_arrays
from convsmith.data.augment import AUGMENTATIONS
from convsmith.data.batch import Batch, DomainBatch
from convsmith.data.description import DataDescription
from convsmith.data.image_data import ImageData
from convsmith.data.loader import DomainLoader, Loader
from convsmith.data.loading import available, load
from convsmith.data.source import SOURCES, BrokenFile
from convsmith.data.split import ImageSplit

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "Batch",
    "BrokenFile",
    "DataDescription",
    "DomainBatch",
    "DomainLoader",
    "ImageData",
    "ImageSplit",
    "Loader",
    "available",
    "from_arrays",
    "load",
]
