"""Play conversations on real engines and on the simulator; see --help and conf/twin.yaml."""

from conserve_gym.agents.cli import twin

if __name__ == "__main__":
    twin()
