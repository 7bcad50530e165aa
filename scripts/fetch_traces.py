"""Fetch public recordings; see --help and conf/fetch_traces.yaml."""

from conserve_gym.agents.cli import fetch_traces

if __name__ == "__main__":
    fetch_traces()
