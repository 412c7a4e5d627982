"""Compression: fewer parameters and operations at equal accuracy."""

from convsmith.compression.cost import CONVENTIONS, Cost, LayerCost, cost

__all__ = [
    "CONVENTIONS",
    "Cost",
    "LayerCost",
    "cost",
]
