"""Train a policy; see --help and conf/train.yaml."""

from conserve_gym.agents.cli import train

if __name__ == "__main__":
    train()
