"""Why a checkpoint was refused."""

from __future__ import annotations

from pathlib import Path

from fst_lightning.printable import printable

__all__ = ["STATE_DICT_ADVICE", "CheckpointError", "Refusal", "key_advice", "shown"]

STATE_DICT_ADVICE = (
    "Ask for a state_dict: torch.save(model.state_dict(), ...); docs/checkpoints.md lists the "
    "formats that can be read"
)
"""What to do about a file that is code."""

_LONGEST = 120


class CheckpointError(ValueError):
    """A checkpoint cannot be used: the message names the file, what was found and what to do."""


class Refusal(Exception):
    """What is wrong with a file, said by code that does not have the file's name.

    Args:
        found: What was found, without a full stop.
        advice: What is valid or what to do, a sentence without its full stop.
    """

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found, advice)
        self.found = found
        self.advice = advice

    def about(self, path: Path) -> CheckpointError:
        """Return the error for `path`."""
        return CheckpointError(f"{path}: {self.found}. {self.advice}.")


def shown(value: object) -> str:
    r"""Return text from a file so that it is short and cannot control a terminal.

    Example:
        >>> shown("fc.weight")
        '`fc.weight`'
        >>> shown("a" + chr(27) + "[2J")
        '`a\\x1b[2J`'
    """
    text = printable(str(value)[: _LONGEST + 1])
    return f"`{text[:_LONGEST]}...`" if len(text) > _LONGEST else f"`{text}`"


def key_advice(key: str) -> str:
    """Return the setting that takes the part of a file under `key`, or under a prefix with a dot.

    Example:
        >>> key_advice("student.")
        '`checkpoint_key=student`'
    """
    return shown(f"checkpoint_key={key.removesuffix('.')}")
