"""Objects that show the arguments they were made with."""

from __future__ import annotations

import inspect
from typing import Any, Self

_PLAIN = (bool, int, float, str, type(None))


class ShowsArguments:
    """A mixin for an ``nn.Module`` whose ``repr`` shows the constructor's arguments.

    The arguments are noted when the object is made. An attribute of the same name that holds a
    plain value wins, so that a changed setting shows.

    Example:
        >>> from torch import nn
        >>> class Scale(ShowsArguments, nn.Module):
        ...     def __init__(self, factor: float = 1.0) -> None:
        ...         super().__init__()
        ...         self.factor = factor
        >>> Scale(2.0)
        Scale(factor=2.0)
    """

    _arguments: dict[str, Any]

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """Note the arguments."""
        made = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        try:
            bound = signature.bind(made, *arguments, **options)
        except TypeError:  # The constructor says so itself; copies are made without arguments.
            noted: dict[str, Any] = {}
        else:
            bound.apply_defaults()
            noted = dict(list(bound.arguments.items())[1:])
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    noted |= noted.pop(name)
                elif parameter.kind is parameter.VAR_POSITIONAL:
                    noted.pop(name)
        object.__setattr__(made, "_arguments", noted)
        return made

    def extra_repr(self) -> str:
        """The arguments, as ``name=value``."""
        shown = []
        for name, given in self._arguments.items():
            now = getattr(self, name, given)
            value = now if isinstance(now, _PLAIN) else given
            shown.append(f"{name}={value!r}")
        return ", ".join(shown)
