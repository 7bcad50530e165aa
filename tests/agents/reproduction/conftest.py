"""Makes the helpers of these tests and of the serving model's importable."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parents[1] / "envs" / "serving")]
