"""Routers that people already run, deciding with a policy: thin front ends of ``agents.router``."""
