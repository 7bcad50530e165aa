"""Export a policy; see --help and conf/export.yaml."""

from conserve_gym.agents.cli import export

if __name__ == "__main__":
    export()
