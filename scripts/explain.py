"""Explain a policy's decisions; see --help and conf/explain.yaml."""

from conserve_gym.agents.cli import explain

if __name__ == "__main__":
    explain()
