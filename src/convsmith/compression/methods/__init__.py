"""One file a compression method."""
