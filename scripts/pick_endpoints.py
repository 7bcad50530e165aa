"""Tell Envoy where conversations run; see --help and conf/pick_endpoints.yaml."""

import sys

from conserve_gym.agents.cli import pick_endpoints

if __name__ == "__main__":
    # Envoy's messages import a package `validate`: validate.py beside this file is not it.
    sys.path.pop(0)
    pick_endpoints()
