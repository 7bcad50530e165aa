"""Project a policy onto routers' thresholds; see --help and conf/project.yaml."""

from conserve_gym.agents.cli import project

if __name__ == "__main__":
    project()
