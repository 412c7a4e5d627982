"""Real images of package registries for studies; nothing is redistributed, each file names its source and licence."""
