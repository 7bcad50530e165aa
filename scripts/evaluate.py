"""Evaluate policies on the same seeds; see --help and conf/evaluate.yaml."""

from conserve_gym.agents.cli import evaluate

if __name__ == "__main__":
    evaluate()
