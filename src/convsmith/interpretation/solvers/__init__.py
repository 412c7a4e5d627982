"""Searches for the gates of one batch: the published schedule step for step, and one that converges."""
