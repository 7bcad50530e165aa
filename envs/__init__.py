"""Gymnasium environments on a calibrated GPU serving model; importing this registers them."""

from conserve_gym.registration import register_environments

register_environments()
