"""The version, in this one place: pyproject.toml, ``convsmith --version`` and saved environments read it."""

__version__ = "0.1.0"
