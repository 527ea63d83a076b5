"""Makes a part from its configuration; nothing else instantiates."""

from __future__ import annotations

from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from fst_lightning.pipelines.build.arguments import check_arguments

Part = TypeVar("Part")


def make(config: DictConfig, kind: type[Part] | None, **more: Any) -> Part:
    """Instantiate a part of the configuration, and unwrap the error of its constructor.

    Args:
        config: With a ``_target_``.
        kind: Its required class; None for any.
        more: Further arguments.

    Raises:
        ValueError: If the target does not exist or makes another class. An error of the
            constructor is raised as it is.
    """
    try:
        check_arguments(config, given=more)
        part = instantiate(config, _convert_="all", **more)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | OSError | ImportError):
            raise cause from None
        raise ValueError(f"{config._target_}: {cause or error}") from error
    if kind is not None and not isinstance(part, kind):
        raise ValueError(
            f"Expected {config._target_} to make a {kind.__name__}, "
            f"but it made a {type(part).__name__}."
        )
    return part  # type: ignore[no-any-return]
