"""Searches for the gates of one batch: the published schedule, one that converges, and one that keeps layers open."""
