"""What keeps the tests quick.

Properties are tried on 100 examples, and on 1,000 with ``--hypothesis-profile=thorough``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import settings

from conserve_gym.envs import configuration

settings.register_profile("thorough", max_examples=1000)

# Scenarios never change, and a tenth of a second to a second goes into each that is composed. Files
# that one is read from do change.
_compose = configuration.load_scenario
_remembered = functools.lru_cache(_compose)


@functools.wraps(_compose)
def _load_scenario(overrides: Sequence[str] = ()) -> configuration.Scenario:
    reads_files = GlobalHydra.instance().is_initialized() or any("path" in o for o in overrides)
    return _compose(overrides) if reads_files else _remembered(tuple(overrides))


configuration.load_scenario = _load_scenario


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)
