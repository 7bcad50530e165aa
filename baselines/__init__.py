"""Heuristic policies, one idea a file."""
