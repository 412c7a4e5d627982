"""Budgets, sensitivity, allocation and plans on disk."""
