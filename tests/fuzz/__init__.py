"""Fuzzed calls, damaged files and command lines: ``python -m tests.fuzz --cases 20000`` counts their outcomes."""
