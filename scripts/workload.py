"""Look at recordings, convert or fit them; see --help and conf/workload_tool.yaml."""

from conserve_gym.agents.cli import workload

if __name__ == "__main__":
    workload()
