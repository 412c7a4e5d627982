"""What ``python -m experiments`` can do: one file a verb."""
