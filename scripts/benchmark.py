"""Play policies x workloads x loads and rank them; see --help and conf/benchmark.yaml."""

from conserve_gym.agents.cli import benchmark

if __name__ == "__main__":
    benchmark()
