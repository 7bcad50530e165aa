"""Policies that somebody else wrote: a class in a Python file or in an installed module."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from conserve_gym.deployment import Deployment
from conserve_gym.envs.configuration import ConfigurationError
from conserve_gym.policy import Policy
from conserve_gym.site import Site


def names_a_class(asked: str) -> bool:
    """Return whether a text has the form ``path/to/file.py:Class`` or ``package.module:Class``."""
    return asked.rpartition(":")[2].isidentifier() and bool(asked.rpartition(":")[0])


def source(asked: str) -> Path:
    """Return the file that a submission stands in.

    Raises:
        ConfigurationError: There is none.
    """
    name = asked.rpartition(":")[0]
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise ConfigurationError(f"policy {asked!r}: no file {name}")
        return Path(name)
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.origin:
        raise ConfigurationError(f"policy {asked!r}: no file ending in .py, and no module {name}")
    return Path(found.origin)


def submitted(asked: str, site: Site) -> Policy:
    """Return the policy that a submission makes for a cluster.

    Args:
        asked: ``path/to/file.py:Class`` or ``package.module:Class``. The class is called with the
            site if its first argument is called ``site`` or has no default, else with nothing.
        site: The cluster that it shall decide for.

    Raises:
        ConfigurationError: It is no policy; the message says what is missing.
    """
    name, _, class_name = asked.rpartition(":")
    file = source(asked)
    try:
        module = _from_file(file) if name.endswith(".py") else importlib.import_module(name)
    except Exception as error:
        raise _broken(asked, "cannot be imported", error) from error
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        there = [key for key, value in vars(module).items() if inspect.isclass(value)]
        raise ConfigurationError(
            f"policy {asked!r}: no class {class_name} in {file}; its classes: "
            f"{', '.join(there) or 'none'}"
        )
    kind: Callable[..., Any] = found
    try:
        policy = kind(site) if _takes_a_site(kind) else kind()
    except Exception as error:
        raise _broken(asked, "cannot be built", error) from error
    _check(asked, policy)
    return cast(Policy, policy)


def _takes_a_site(kind: Callable[..., Any]) -> bool:
    for one in inspect.signature(kind).parameters.values():
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD):
            return one.name == "site" or one.default is one.empty
    return False


def _from_file(path: Path) -> ModuleType:
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"submission_{digest}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _check(asked: str, policy: object) -> None:
    lacks = [
        says
        for key, says, holds in (
            ("name", "name (a text)", lambda value: isinstance(value, str)),
            ("deployment", "deployment (a Deployment)", lambda v: isinstance(v, Deployment)),
            ("reset", "reset(seed)", callable),
            ("decide", "decide(observation)", callable),
        )
        if not holds(getattr(policy, key, None))
    ]
    if lacks:
        raise ConfigurationError(f"policy {asked!r} is no policy: it lacks {', '.join(lacks)}")


def _broken(asked: str, what: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"policy {asked!r} {what}: {type(error).__name__}: {error}")
