"""Put a checkpoint's weights into a network, after checking all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fst_lightning.checkpoints.errors import CheckpointError, Refusal, shown
from fst_lightning.checkpoints.keys import KeyMap, match_keys
from fst_lightning.checkpoints.read import Checkpoint

__all__ = ["load_into"]

_LISTED = 5
_OTHER_NETWORK = "Choose the network that the file was trained with, with its arguments"


def load_into(net: nn.Module, checkpoint: Checkpoint) -> KeyMap:
    """Load a checkpoint strictly; an unfit one leaves the network as it was.

    Names are matched by `match_keys`. A Lightning file may hold names outside the network's prefix
    (metrics, losses, a defense's state); they are left alone and listed in the result. Floating
    point tensors take the network's dtype.

    Args:
        net: the network, on any device.
        checkpoint: what `read_checkpoint` returned.

    Returns:
        How names map, for writing the weights back under the file's names.

    Raises:
        CheckpointError: names, shapes or kinds of numbers do not fit, or a value is not finite.
    """
    state = {name: t for name, t in net.state_dict().items() if isinstance(t, Tensor)}
    key_map = match_keys(checkpoint.tensors, state, source=str(checkpoint.path))
    try:
        _check_names(key_map, checkpoint, state)
        pairs = {net_name: checkpoint.tensors[name] for name, net_name in key_map.to_net.items()}
        _check_shapes(pairs, state)
        ready = {
            net_name: _converted(name, checkpoint.tensors[name], state[net_name])
            for name, net_name in key_map.to_net.items()
        }
    except Refusal as refusal:
        raise refusal.about(checkpoint.path) from None
    try:
        net.load_state_dict({**net.state_dict(), **ready}, strict=True)
    except RuntimeError as error:  # pragma: no cover - only a network's own hooks object here
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    return key_map


def _check_names(key_map: KeyMap, checkpoint: Checkpoint, state: dict[str, Tensor]) -> None:
    if not state:
        raise Refusal("has weights, but the network has none", _OTHER_NETWORK)
    if not key_map.to_net:
        ours = ", ".join(shown(name) for name in list(state)[:2])
        theirs = ", ".join(shown(name) for name in list(checkpoint.tensors)[:2]) or "none"
        raise Refusal(
            f"none of its names ({theirs} ...) fits the network's ({ours} ...)", _OTHER_NETWORK
        )
    if key_map.missing:
        raise Refusal(f"lacks {_listed(key_map.missing)} of the network", _OTHER_NETWORK)
    surplus = key_map.unexpected
    if checkpoint.format != "lightning":
        surplus += key_map.outside
    if surplus:
        raise Refusal(f"has {_listed(surplus)} that the network lacks", _OTHER_NETWORK)


def _check_shapes(pairs: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    unlike = [name for name in pairs if pairs[name].shape != state[name].shape]
    if not unlike:
        return
    classes = {_classes(pairs[name], state[name]) for name in unlike}
    parents = {name.rpartition(".")[0] for name in unlike}
    if len(parents) == 1 and len(classes) == 1 and None not in classes:
        # only the output of one layer differs and nothing after it does: it is the last layer
        found, wanted = next(iter(classes)) or (0, 0)
        raise Refusal(
            f"the file has {found} classes, the data has {wanted}",
            "Choose the data that the model was trained on, or name all of its classes",
        )
    name = unlike[0]
    more = f" (and {len(unlike) - 1} more)" if len(unlike) > 1 else ""
    raise Refusal(
        f"{shown(name)} has shape {tuple(pairs[name].shape)}, the network's has "
        f"{tuple(state[name].shape)}{more}",
        _OTHER_NETWORK,
    )


def _classes(found: Tensor, wanted: Tensor) -> tuple[int, int] | None:
    linear = found.dim() == wanted.dim() and found.dim() in (1, 2)
    if not linear or found.shape[1:] != wanted.shape[1:]:
        return None
    return found.shape[0], wanted.shape[0]


def _converted(name: str, tensor: Tensor, wanted: Tensor) -> Tensor:
    if _kind(tensor) != _kind(wanted):
        raise Refusal(
            f"{shown(name)} holds {tensor.dtype} numbers where the network has {wanted.dtype}",
            "Ask for an unquantised file",
        )
    converted = tensor.to(wanted.dtype)
    if converted.is_floating_point() and not bool(converted.float().isfinite().all()):
        raise Refusal(
            f"{shown(name)} has values that are NaN or infinite in {wanted.dtype}",
            "The training that made the file diverged, or the file is damaged; ask for another",
        )
    return converted


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "float"
    return "bool" if tensor.dtype == torch.bool else "integer"


def _listed(names: tuple[str, ...]) -> str:
    some = ", ".join(shown(name) for name in names[:_LISTED])
    more = ", ..." if len(names) > _LISTED else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({some}{more})"
