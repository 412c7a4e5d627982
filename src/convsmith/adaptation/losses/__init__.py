"""Losses and discrepancies between two domains."""
