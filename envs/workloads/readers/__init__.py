"""Readers of recorded conversations, one format a file."""
