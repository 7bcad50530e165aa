"""Hydra configuration groups, shipped as package data of `conserve_gym.conf`."""
