"""Sweep training's hyper-parameters; see --help and conf/sweep.yaml."""

from conserve_gym.agents.cli import sweep

if __name__ == "__main__":
    sweep()
