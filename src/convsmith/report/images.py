"""Photographs for a report's page: small enough that sixty of them make at most three megabytes."""

from __future__ import annotations

import base64
import io

import numpy as np

from convsmith.report.figures import png


def photo(pixels: np.ndarray, side: int = 320) -> str:
    """Return a photograph as base64 JPEG, its larger side at most ``side``; one of at most 64 pixels stays PNG."""
    from PIL import Image

    array = np.asarray(pixels, dtype=float)
    if max(array.shape[1:]) <= 64:
        return png(array)
    array = np.repeat(array, 3, 0) if array.shape[0] == 1 else array
    image = Image.fromarray(np.round(np.clip(array.transpose(1, 2, 0), 0, 1) * 255).astype(np.uint8))
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
