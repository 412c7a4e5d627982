"""Poolings by eigenvalues say so when they are exported; the suite of poolings exports all others."""

import pytest
import torch

from convsmith.pooling import POOLINGS


@pytest.mark.parametrize("name", ["deep-o2p", "g2denet", "l2emg", "mpn-cov", "raid-g"])
def test_a_pooling_by_eigenvalues_says_so(name):
    with pytest.raises(Exception, match="eigenvalue"):
        torch.export.export(POOLINGS[name](6).eval(), (torch.randn(2, 6, 4, 4),))
