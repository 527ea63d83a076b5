"""Put a checkpoint's weights into a network, after checking all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fst_lightning.checkpoints.errors import CheckpointError, Refusal, key_advice, shown
from fst_lightning.checkpoints.extras import (
    Normalization,
    find_normalization,
    is_auxiliary,
    is_bookkeeping,
)
from fst_lightning.checkpoints.folding import fold
from fst_lightning.checkpoints.keys import KeyMap, is_counter, match_keys
from fst_lightning.checkpoints.read import Checkpoint

__all__ = ["load_into"]

_LISTED = 5
_OTHER_NETWORK = (
    "Choose the network that the file was trained with, with its arguments; or name a class of "
    "your own: model._target_=package.module.Class"
)
_UNEQUAL = 1e-3


def load_into(
    net: nn.Module,
    checkpoint: Checkpoint,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> KeyMap:
    """Load a checkpoint strictly; an unfit one leaves the network as it was.

    Names are matched by `match_keys`. Floating point tensors take the network's dtype. Weights that
    the file holds in parts are folded. Tensors that have no effect on the outputs are set aside:
    counters of other tools, auxiliary heads, and a normalization of the images that is the data's
    own. A Lightning file may hold other names outside of the network's prefix (metrics, losses, a
    defense's state); they are listed in the result.

    Args:
        net: The network, on any device.
        checkpoint: What `read_checkpoint` returned.
        mean: Per channel, by which images in [0, 1] are normalized for the network.
        std: As `mean`.

    Returns:
        How names map, for writing the weights back under the file's names.

    Raises:
        CheckpointError: names, shapes or kinds of numbers do not fit, a value is not finite, or the
            file normalizes images in another way.
    """
    state = {name: t for name, t in net.state_dict().items() if isinstance(t, Tensor)}
    tensors, folds = fold(checkpoint.tensors, state)
    key_map = match_keys(tensors, state, source=str(checkpoint.path))
    try:
        key_map = _set_aside(replace(key_map, folds=folds), tensors, mean, std)
        _check_names(key_map, checkpoint, state)
        _check_folds(key_map, net)
        pairs = {net_name: tensors[name] for name, net_name in key_map.to_net.items()}
        _check_shapes(pairs, state)
        ready = {
            net_name: _converted(name, tensors[name], state[net_name])
            for name, net_name in key_map.to_net.items()
        }
    except Refusal as refusal:
        raise refusal.about(checkpoint.path) from None
    try:
        net.load_state_dict({**net.state_dict(), **ready}, strict=True)
    except RuntimeError as error:  # pragma: no cover - only a network's own hooks object here
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    return key_map


def _set_aside(
    key_map: KeyMap,
    tensors: Mapping[str, Tensor],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> KeyMap:
    """Move the tensors without effect from the surplus to those that are kept as they are."""
    surplus = (*key_map.unexpected, *key_map.outside)
    kept = {
        name
        for name in surplus
        if is_bookkeeping(name, tensors[name]) or is_auxiliary(name, key_map.prefix)
    }
    normalization = find_normalization((n for n in surplus if n not in kept), tensors)
    if normalization is not None and not key_map.missing:
        _check_normalization(normalization, mean, std)
        kept.update(normalization.names)
    return replace(
        key_map,
        kept={name: tensors[name] for name in surplus if name in kept},
        unexpected=tuple(name for name in key_map.unexpected if name not in kept),
        outside=tuple(name for name in key_map.outside if name not in kept),
    )


def _check_normalization(
    own: Normalization, mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    found = torch.tensor([own.mean, own.std])
    if mean is not None and std is not None and len(mean) in (1, len(own.mean)):
        given = torch.tensor([[*mean], [*std]])
        if bool(((found - given).abs() < _UNEQUAL).all()):
            return
    means, stds = (",".join(f"{value:g}" for value in values) for values in (own.mean, own.std))
    raise Refusal(
        f"normalizes images in the network ({shown(own.names[0])}, {shown(own.names[1])}), which "
        "this network leaves to the data",
        f"Normalize the data as the file does: data.mean=[{means}] data.std=[{stds}]",
    )


def _check_folds(key_map: KeyMap, net: nn.Module) -> None:
    for folded in key_map.folds:
        owner = key_map.to_net.get(folded.name, "").rpartition(".")[0]
        transposed = isinstance(net.get_submodule(owner), nn.modules.conv._ConvTransposeNd)
        if folded.spectral and transposed:
            raise Refusal(
                f"holds {shown(folded.name)} under a spectral normalization that may have either "
                "of two meanings",
                "Save it without: torch.nn.utils.parametrize.remove_parametrizations(layer, "
                "'weight')",
            )


def _check_names(key_map: KeyMap, checkpoint: Checkpoint, state: dict[str, Tensor]) -> None:
    if not state:
        raise Refusal("has weights, but the network has none", _OTHER_NETWORK)
    if not key_map.to_net:
        ours = ", ".join(shown(name) for name in list(state)[:2])
        theirs = ", ".join(shown(name) for name in list(checkpoint.tensors)[:2]) or "none"
        raise Refusal(
            f"none of its names ({theirs} ...) fits the network's ({ours} ...)", _OTHER_NETWORK
        )
    surplus = key_map.unexpected
    if checkpoint.format != "lightning":
        surplus += key_map.outside
    advice = _OTHER_NETWORK
    if any("parametrizations." in name for name in surplus):
        advice = (
            "Save it without parametrizations: "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
        )
    elif key_map.prefix and surplus and not key_map.unexpected:
        advice = f"To take the part that fits alone, say {key_advice(key_map.prefix)}"
    if key_map.missing:
        raise Refusal(
            f"lacks {_listed(key_map.missing)} of the network",
            advice if "parametrizations" in advice else _OTHER_NETWORK,
        )
    if surplus:
        raise Refusal(f"has {_listed(surplus)} that the network lacks", advice)


def _check_shapes(pairs: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    unlike = [
        name for name in pairs if pairs[name].shape != state[name].shape and not is_counter(name)
    ]
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
    if is_counter(name) and tensor.numel() == wanted.numel() == 1:
        return _counter(tensor.reshape(wanted.shape), wanted)
    if _kind(tensor) != _kind(wanted):
        raise Refusal(
            f"{shown(name)} holds {tensor.dtype} numbers where the network has {wanted.dtype}",
            "Ask for an unquantized file",
        )
    converted = tensor.to(wanted.dtype)
    if converted.is_floating_point() and not bool(converted.float().isfinite().all()):
        raise Refusal(
            f"{shown(name)} has values that are NaN or infinite in {wanted.dtype}",
            "The training that made the file diverged, or the file is damaged; ask for another",
        )
    return converted


def _counter(found: Tensor, wanted: Tensor) -> Tensor:
    """Take over BatchNorm's count of batches, which other programs store in any type and shape."""
    if found.is_floating_point() and bool(found.isfinite()):
        found = found.round().long()
    # float16 ends at 65,504; with a fixed momentum the count has no effect
    return found.to(wanted.dtype) if _kind(found) == _kind(wanted) else wanted.detach().cpu()


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
