"""Print the fidelity report of the serving model; see --help and conf/validate.yaml."""

from conserve_gym.agents.cli import validate

if __name__ == "__main__":
    validate()
