"""Networks for Stable-Baselines3 that score every placement with the same weights."""
