"""A run: its configuration, choices, overrides and folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Run:
    """One run: its configuration, and the command that started it.

    Attributes:
        cfg: The composed configuration.
        choices: The chosen option of every group, e.g. ``{"attack": "blended"}``.
        overrides: The overrides of the command line.
        folder: The folder that the run writes into.
        head: Dotted name of the network's head; None before the search, and if there is none.
    """

    cfg: DictConfig
    choices: dict[str, str]
    overrides: list[str]
    folder: Path
    head: str | None = None

    def given(self, key: str) -> bool:
        """Whether the command line sets this key, or a key below it.

        Example:
            >>> run = Run(OmegaConf.create({}), {}, ["data.root=x", "model=resnet18"], Path("."))
            >>> run.given("data"), run.given("model"), run.given("data.mean")
            (True, True, False)
        """
        return any(name == key or name.startswith(f"{key}.") for name in self._names)

    def chosen(self, group: str) -> bool:
        """Whether the command line chooses the option of this group, or names a class for it.

        Example:
            >>> run = Run(OmegaConf.create({}), {}, ["model=resnet18", "attack.a=1"], Path("."))
            >>> run.chosen("model"), run.chosen("attack")
            (True, False)
        """
        return group in self._names or f"{group}._target_" in self._names

    @property
    def _names(self) -> list[str]:
        return [override.lstrip("+~").split("=", 1)[0] for override in self.overrides]

    def plain(self, group: str) -> dict[str, Any]:
        """A part of the configuration, resolved, as plain Python."""
        resolved = OmegaConf.to_container(self.cfg[group], resolve=True)
        if not isinstance(resolved, dict):
            raise TypeError(f"Expected `{group}` to be a group of keys, but got {resolved!r}.")
        return {str(key): value for key, value in resolved.items()}

    def arguments(self, group: str) -> dict[str, Any]:
        """A part without Hydra's own keys: the arguments of its class."""
        return {k: v for k, v in self.plain(group).items() if not k.startswith("_")}

    def parts(self, group: str) -> list[DictConfig]:
        """The parts of a group that may hold any number of them.

        Raises:
            ValueError: If one has no ``_target_``.
        """
        parts = self.cfg.get(group) or {}
        if not all(
            isinstance(parts, DictConfig) and isinstance(parts[n], DictConfig) for n in parts
        ):
            raise ValueError(
                f"Expected `{group}` to hold parts by name ({group}.NAME._target_=CLASS), but got "
                f"{parts!r}."
            )
        return list(parts.values())
