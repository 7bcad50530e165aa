"""ConServe Gym: place LLM-agent conversations on GPU clusters, from what has been observed.

The environments register themselves when ``conserve_gym.envs`` is imported, or this package after
Gymnasium. A bare ``import conserve_gym`` loads nothing, so that routers need NumPy alone.
"""

import sys

__version__ = "0.1.0"

if "gymnasium" in sys.modules:
    from conserve_gym.registration import register_environments

    register_environments()
