"""Recognizes weights of torchvision and timm networks, so that an error can name them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec

import torchvision
from torch import Tensor

from fst_lightning.checkpoints import match_keys
from fst_lightning.checkpoints.errors import CheckpointError
from fst_lightning.models.build import outline

_CLASSES = 1000


def library_network(tensors: Mapping[str, Tensor], wanted: str) -> str | None:
    """Name the library network that fits the parameters and buffers of a file.

    Only networks of the same family are built, without memory for their weights.

    Args:
        tensors: The tensors of the file, by name.
        wanted: The network that was configured, such as ``resnet18``.

    Returns:
        The overrides for the command line; None if no network of the family fits.
    """
    for library, name in _candidates(wanted):
        try:
            state = outline(library, _CLASSES, name=name, pretrained=False).state_dict()
            keys = match_keys(tensors, state)
        except (CheckpointError, ImportError, ValueError, RuntimeError):
            continue
        if keys.missing or keys.unexpected or keys.outside:
            continue
        pairs = [(tensors[file], state[net]) for file, net in keys.to_net.items()]
        if all(_alike(one, other) for one, other in pairs):
            return f"model={library} model.name={name}"
    return None


def _candidates(wanted: str) -> Iterator[tuple[str, str]]:
    """Libraries and names: the configured one first, then those of its family in torchvision."""
    family = wanted.rstrip("0123456789_").partition("_")[0].rstrip("0123456789")
    known = torchvision.models.list_models(module=torchvision.models)
    names = [name for name in known if family and name.startswith(family)]
    yield from (("torchvision", name) for name in sorted(names, key=lambda n: n != wanted))
    if find_spec("timm") is not None:
        yield "timm", wanted


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two shapes are equal up to the number of classes."""
    return one.shape == other.shape or (
        one.shape[1:] == other.shape[1:] and other.shape[:1] == (_CLASSES,)
    )
