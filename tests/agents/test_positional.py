"""Words and files on the command line become keys that Hydra reads."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest

from conserve_gym.agents.positional import keyed
from conserve_gym.envs.configuration import ConfigurationError

NAMES = [
    "a.csv", "with a space.csv", "a=b.csv", "it's.csv", 'say "x".csv', "a\\b", "a\\'b", "end\\",
    "${x}.csv", "\\${x}'", "$x", "a,b", "[1]", "{a: b}", "null", "1", "true", "ü", "#x", "'q'",
    " lead", "a'b\\\\'c", "~a", "+a", "a:b", "(a)", "%(asctime)s",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_a_file_survives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    overrides = keyed(["profile", name, "max_turns=3"])
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        config = hydra.compose("workload_tool", overrides)
    assert (config.do, config.path, config.max_turns) == ("profile", name, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["do=profile", "path=a.csv"],
        ["max_turns=3", "do=fit", "path=a.csv"],
        ["--help"],
        ["--cfg", "job"],
        ["~rates", "do=profile", "path=a.csv"],
    ],
)
def test_what_has_keys_already_stays(arguments: list[str]) -> None:
    assert keyed(arguments) == arguments


def test_flags_and_keys_may_follow_a_word() -> None:
    assert keyed(["convert", "--cfg", "job"]) == ["do=convert", "--cfg", "job"]
    assert keyed(["fit", "name=x", "path=a"]) == ["do=fit", "name=x", "path=a"]
    assert keyed(["fit", "a", "name=x"]) == ["do=fit", "path='a'", "name=x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what to do is needed: profile FILE, convert FILE or fit FILE"),
        (["max_turns=3"], "what to do is needed"),
        (["look", "a.csv"], "'look' is none of profile FILE, convert FILE, fit FILE"),
        (["a.csv"], "'a.csv' is none of profile FILE"),
        (["profile"], "profile FILE: the file is needed"),
        (["profile", "no=file.csv"], "profile FILE: the file is needed"),
    ],
)
def test_what_is_missing_is_said(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        keyed(arguments)
