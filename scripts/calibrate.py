"""Fit the step law of a GPU and a model; see --help and conf/calibrate.yaml."""

from conserve_gym.agents.cli import calibrate

if __name__ == "__main__":
    calibrate()
