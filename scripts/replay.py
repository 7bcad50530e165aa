"""Decide again on a router's log; see --help and conf/replay.yaml."""

from conserve_gym.agents.cli import replay

if __name__ == "__main__":
    replay()
