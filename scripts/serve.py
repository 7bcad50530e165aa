"""Serve OpenAI's API in front of real engines; see --help and conf/serve.yaml."""

from conserve_gym.agents.cli import serve

if __name__ == "__main__":
    serve()
