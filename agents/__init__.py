"""Learned policies: training, evaluation, statistics and export."""
