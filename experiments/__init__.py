"""Studies and benchmarks of convsmith: beside the package, not installed with it."""
