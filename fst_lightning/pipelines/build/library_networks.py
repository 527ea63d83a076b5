"""Recognizes weights of torchvision's and timm's networks, for an error that tells their name."""

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
    """Name the network of a library whose parameters and buffers a file holds.

    Only networks of the same family are built, and none of their numbers: it takes a moment.

    Args:
        tensors: Of the file, by name.
        wanted: The network that the file was taken for, such as ``resnet18``.

    Returns:
        What to say on the command line; None if no network of the family fits.
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
    """Libraries and names: the same one first, then torchvision's of the same family."""
    family = wanted.rstrip("0123456789_").partition("_")[0].rstrip("0123456789")
    known = torchvision.models.list_models(module=torchvision.models)
    names = [name for name in known if family and name.startswith(family)]
    yield from (("torchvision", name) for name in sorted(names, key=lambda n: n != wanted))
    if find_spec("timm") is not None:
        yield "timm", wanted


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two shapes are equal, the number of classes set aside."""
    return one.shape == other.shape or (
        one.shape[1:] == other.shape[1:] and other.shape[:1] == (_CLASSES,)
    )
