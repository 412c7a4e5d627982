"""Flags, settings, run folders, terminal."""
