"""Where the weights lie in the dictionary that a torch file holds."""

from __future__ import annotations

from dataclasses import dataclass

from fst_lightning.checkpoints.errors import Refusal, shown
from fst_lightning.checkpoints.pickle_values import Pairs, TensorRef

__all__ = ["Layout", "find_layout"]

_WRAPPERS = ("state_dict", "model", "net", "model_state_dict", "weights")
_VALID = (
    "Give a file of torch.save(model.state_dict(), ...), or a dictionary that holds the state_dict "
    f"under one of {', '.join(_WRAPPERS)}"
)


@dataclass(frozen=True, slots=True)
class Layout:
    """The format's name, and the key under which the state_dict lies (None: it is the root)."""

    format: str
    key: str | None


def find_layout(root: object) -> Layout:
    """Tell Lightning, BackdoorBench, wrapped and plain files apart by what they hold.

    Args:
        root: the described value of the file's pickle.

    Raises:
        Refusal: there is no state_dict.
    """
    if isinstance(root, TensorRef):
        raise Refusal("holds a single tensor, not a network's state_dict", _VALID)
    if not isinstance(root, Pairs):
        raise Refusal("holds no dictionary of tensors", _VALID)
    fields = root.fields()
    if "pytorch-lightning_version" in fields and isinstance(fields.get("state_dict"), Pairs):
        return Layout("lightning", _with_tensors(fields, "state_dict"))
    if {"model_name", "num_classes", "model"} <= fields.keys():
        return Layout("backdoorbench", _with_tensors(fields, "model"))
    for key in _WRAPPERS:
        if isinstance(fields.get(key), Pairs) and _has_tensors(fields[key]):
            return Layout("state_dict", key)
    if _has_tensors(root):
        return Layout("state_dict", None)
    names = ", ".join(shown(name) for name in list(fields)[:5]) or "none"
    raise Refusal(f"holds no state_dict; its keys are {names}", _VALID)


def _with_tensors(fields: dict[str, object], key: str) -> str:
    if not _has_tensors(fields[key]):
        raise Refusal(f"holds no tensors under {shown(key)}", _VALID)
    return key


def _has_tensors(value: object) -> bool:
    return isinstance(value, Pairs) and any(
        isinstance(item, TensorRef) for item in value.fields().values()
    )
