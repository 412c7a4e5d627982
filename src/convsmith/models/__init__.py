"""Whole networks, registered with timm's own decorator: one file per family, one import line per file."""

from __future__ import annotations

from convsmith.models import igcv1 as igcv1
from convsmith.models import igcv2 as igcv2
from convsmith.models import igcv3 as igcv3
from convsmith.models import lean_controls as lean_controls
from convsmith.models import lenet as lenet
from convsmith.models import merge_run as merge_run
from convsmith.models import residual as residual
from convsmith.models import second_order as second_order
