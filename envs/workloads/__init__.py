"""Workloads: conversations of dependent turns, and when they arrive."""
