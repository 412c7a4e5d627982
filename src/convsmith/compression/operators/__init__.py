"""The interleaved and structured convolutions: chains, blocks, conditions, projections."""
