"""Find out what observations are worth; see --help and conf/ablate.yaml."""

from conserve_gym.agents.cli import ablate

if __name__ == "__main__":
    ablate()
