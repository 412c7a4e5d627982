"""What verbs print and write into pages."""
