"""Re-create the paper's evaluation; see --help and conf/reproduce.yaml."""

from conserve_gym.agents.cli import reproduce

if __name__ == "__main__":
    reproduce()
