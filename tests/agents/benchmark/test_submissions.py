"""A submission is a class in a file or a module; what is wrong with it is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from conserve_gym.agents.policies import resolve
from conserve_gym.agents.submissions import names_a_class
from conserve_gym.baselines.conserve import ConServe
from conserve_gym.deployment import Deployment
from conserve_gym.envs.configuration import ConfigurationError, load_scenario

CLUSTER = load_scenario().cluster
GOOD = """
from conserve_gym import rules
from conserve_gym.deployment import Deployment
from conserve_gym.policy import Policy

class Plain:
    name = "plain"
    deployment = Deployment()
    def reset(self, seed): pass
    def decide(self, observation): return rules.place(observation, disaggregate=False)

class Sited(Plain):
    def __init__(self, site):
        self.name = f"sited for {len(site.engines)}"

class Declared(Policy):
    name = "declared"
    deployment = Deployment()
    def reset(self, seed): pass
    def decide(self, observation): return rules.place(observation, disaggregate=False)

class Tunable(Plain):
    def __init__(self, tokens=512):
        self.name = f"{tokens} tokens"

class Optional(Plain):
    def __init__(self, site=None):
        self.name = f"sited for {len(site.engines)}"

class Nothing:
    pass

class Half:
    name = 7
    deployment = "none"
    def reset(self, seed): pass

class Raises(Plain):
    def __init__(self): raise KeyError("engines")

function = print
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


def test_a_class_may_take_the_site_or_nothing(file: Path) -> None:
    assert resolve(f"{file}:Plain", CLUSTER).name == "plain"
    assert resolve(f"{file}:Sited", CLUSTER).name == "sited for 4"
    assert resolve(f"{file}:Plain", CLUSTER).deployment == Deployment()


@pytest.mark.parametrize(
    ("name", "called"),
    [("Declared", "declared"), ("Tunable", "512 tokens"), ("Optional", "sited for 4")],
)
def test_only_who_asks_for_the_site_gets_it(file: Path, name: str, called: str) -> None:
    assert resolve(f"{file}:{name}", CLUSTER).name == called


def test_a_class_of_a_module() -> None:
    found = resolve("conserve_gym.baselines.full_disagg:FullDisagg", CLUSTER)
    assert found.name == "full_disagg"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Absent", "no class Absent"),
        ("function", "no class function"),
        ("Nothing", "lacks name (a text), deployment (a Deployment), reset(seed), decide"),
        ("Half", "lacks name (a text), deployment (a Deployment), decide(observation)"),
        ("Raises", "cannot be built: KeyError: 'engines'"),
    ],
)
def test_what_is_missing_is_said(file: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        resolve(f"{file}:{name}", CLUSTER)
    assert says in str(error.value)
    assert f"mine.py:{name}" in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no file absent\.py"):
        resolve("absent.py:Mine", CLUSTER)
    with pytest.raises(ConfigurationError, match=r"no module absent\.module"):
        resolve("absent.module:Mine", CLUSTER)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    for _ in range(2):  # not half imported the second time
        with pytest.raises(ConfigurationError, match="cannot be imported: ModuleNotFoundError"):
            resolve(f"{tmp_path / 'broken.py'}:Mine", CLUSTER)


def test_what_names_a_class() -> None:
    assert names_a_class("a/b.py:Mine") and names_a_class("a.b:Mine")
    assert not any(map(names_a_class, ("conserve", "runs/quick", ":Mine", "a.py:", "a:b/c")))
    assert ConServe().name == "conserve"
