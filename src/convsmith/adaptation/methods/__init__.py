"""One file an adaptation method."""
