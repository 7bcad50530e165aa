"""What happens beside learning: checkpoints, episode metrics, ranges of the observation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from conserve_gym.agents.run_folder import save_checkpoint


class Checkpoint(BaseCallback):
    """Saves the whole model between rollouts.

    Args:
        folder: Where checkpoints go.
        every: Steps that a kill may lose.
        rollout_steps: Steps of a rollout.
    """

    def __init__(self, folder: Path, every: int, rollout_steps: int) -> None:
        """Take the folder."""
        super().__init__()
        self._folder = folder
        self._every = every
        self._rollout_steps = rollout_steps

    def _on_training_start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._saved_at = self.num_timesteps

    def _on_rollout_start(self) -> None:
        # The rollout before is learned from by now; another one could be too much to lose.
        if self.num_timesteps + self._rollout_steps - self._saved_at > self._every:
            self._saved_at = self.num_timesteps
            save_checkpoint(self.model, self._folder)

    def _on_step(self) -> bool:
        return True


class LogEpisodes(BaseCallback):
    """Logs the metrics of finished episodes beside the reward."""

    LOGGED = ("slo_attainment_pct", "goodput_per_s", "ttfet_p95", "tbt_p95", "tokens_per_joule")

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "metrics" in info:
                for name in self.LOGGED:
                    self.logger.record_mean(f"episode/{name}", info["metrics"][name])
        return True


class ObservedRange(BaseCallback):
    """Keeps the range of every observation field on the model, so that checkpoints have it.

    Args:
        known: What of a batch of observations there is; NaN where there is nothing.
    """

    def __init__(self, known: Callable[[Any], Any]) -> None:
        """Take it."""
        super().__init__()
        self._known = known

    def _on_training_start(self) -> None:
        model: Any = self.model
        if not hasattr(model, "observed_low"):
            first = model.observation_space.shape
            model.observed_low = np.full(first, np.inf, dtype=np.float32)
            model.observed_high = np.full(first, -np.inf, dtype=np.float32)

    def _on_step(self) -> bool:
        model: Any = self.model
        acted_on = self._known(model._last_obs)
        np.fmin(model.observed_low, np.fmin.reduce(acted_on), out=model.observed_low)
        np.fmax(model.observed_high, np.fmax.reduce(acted_on), out=model.observed_high)
        return True
