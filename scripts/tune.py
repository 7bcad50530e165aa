"""Tune a rule's parameters; see --help and conf/tune.yaml."""

from conserve_gym.agents.cli import tune

if __name__ == "__main__":
    tune()
