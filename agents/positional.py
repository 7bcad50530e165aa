"""Words in their places on a command line, as the keys that Hydra reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from conserve_gym.envs.configuration import ConfigurationError

_WORDS = ("profile", "convert", "fit")


def keyed(arguments: Sequence[str]) -> list[str]:
    """Return ``profile FILE key=value`` as ``do=profile path='FILE' key=value``.

    What has keys already stays as it is.

    Args:
        arguments: Of the command line.

    Raises:
        ConfigurationError: The first word is none that is known, or it has no file.
    """
    uses = [f"{word} FILE" for word in _WORDS]
    word, *rest = arguments or [""]
    if word in _WORDS:
        if rest and (Path(rest[0]).is_file() or ("=" not in rest[0] and rest[0][0:1] != "-")):
            return [f"do={word}", f"path={_quoted(rest[0])}", *rest[1:]]
        if not any(one.startswith(("-", "path=")) for one in rest):
            raise ConfigurationError(f"{word} FILE: the file is needed")
        return [f"do={word}", *rest]
    if word and "=" not in word and not word.startswith(("-", "~")):
        raise ConfigurationError(f"{word!r} is none of {', '.join(uses)}")
    if not any(one.startswith(("-", "do=")) for one in arguments):
        raise ConfigurationError(f"what to do is needed: {', '.join(uses[:-1])} or {uses[-1]}")
    return list(arguments)


def _quoted(text: str) -> str:
    """Return a text that Hydra's grammar, and then OmegaConf's interpolation, read as it is."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    # Backslashes count as escapes before a quote alone, the closing one among them.
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    text = re.sub(r"(\\+)$", r"\1\1", text)
    return f"'{text}'"
