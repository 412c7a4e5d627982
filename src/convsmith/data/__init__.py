"""Images: embedded sets, folders and other libraries' sets, divided, described, and given out in keyed order."""

from convsmith.data.arrays import from_arrays
from convsmith.data.augment import AUGMENTATIONS
from convsmith.data.batch import Batch, DomainBatch
from convsmith.data.classes import chosen_classes
from convsmith.data.domains import DomainPair, pair
from convsmith.data.folders import image_files
from convsmith.data.loader import DomainLoader, Loader
from convsmith.data.loading import available, from_files, load
from convsmith.data.preprocessing import DataDescription, Preprocessing
from convsmith.data.source import SOURCES, BrokenFile
from convsmith.data.split import ImageData, ImageSplit

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "Batch",
    "BrokenFile",
    "DataDescription",
    "DomainBatch",
    "DomainLoader",
    "DomainPair",
    "ImageData",
    "ImageSplit",
    "Loader",
    "Preprocessing",
    "available",
    "chosen_classes",
    "from_arrays",
    "from_files",
    "image_files",
    "load",
    "pair",
]
