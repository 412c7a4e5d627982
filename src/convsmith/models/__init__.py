"""Whole networks, registered with timm's own decorator: one file per family, one import line per file."""

from __future__ import annotations

from convsmith.models import lenet as lenet
from convsmith.models import residual as residual
