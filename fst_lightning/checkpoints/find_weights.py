"""Find the network's weights in the dictionary that a torch file holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fst_lightning.checkpoints.errors import Refusal, key_advice, shown
from fst_lightning.checkpoints.formats.pickle_values import Foreign, Pairs, TensorRef

__all__ = ["Layout", "check_prefix", "find_layout"]

_WRAPPERS = (
    *("state_dict", "model", "net", "model_state_dict", "weights"),
    *("model_state", "network", "network_state_dict", "net_state_dict"),
)
_VALID = (
    "Give a file of torch.save(model.state_dict(), ...), or a dictionary that holds the state_dict "
    f"under one of {', '.join(_WRAPPERS[:5])}"
)
_DEEPEST = 4
_MOST = 1_000  # dictionaries that are looked at
_LISTED = 6


@dataclass(frozen=True, slots=True)
class Layout:
    """The name of the format, and the position of the weights.

    Args:
        format: `lightning`, `backdoorbench` or `state_dict`.
        state: The described state_dict.
        prefix: The start of the wanted names, with its dot; empty if all of them are.
        others: Keys of further state_dicts in the file.
    """

    format: str
    state: Pairs
    prefix: str = ""
    others: tuple[str, ...] = ()


def find_layout(root: object, key: str | None = None) -> Layout:
    """Tell Lightning, BackdoorBench, wrapped and plain files apart by what they hold.

    Among several state_dicts the usual names go first. A single one is found under any name.

    Args:
        root: The described value of the file's pickle.
        key: The state_dict to take, as names joined by dots. It may go on with the start of the
            names in the state_dict, if that holds several networks. None chooses.

    Raises:
        Refusal: If there is no state_dict; or there are several, and none under a usual name.
    """
    if isinstance(root, Foreign):
        raise root.why
    if isinstance(root, TensorRef):
        raise Refusal("holds a single tensor, not a network's state_dict", _VALID)
    if not isinstance(root, Pairs):
        raise Refusal("holds no dictionary of tensors", _VALID)
    fields = root.fields()
    found = dict(_state_dicts(root))
    networks = {name: found[name] for name in found if _is_network(found[name])}
    name, prefix = _usual(found, networks), ""
    if key is not None:
        name, prefix = _named(key, found, name)
    if name is None:
        raise _undecided(fields, networks or found)
    kind = "state_dict"
    if name == "state_dict" and "pytorch-lightning_version" in fields:
        kind = "lightning"
    if name == "model" and {"model_name", "num_classes"} <= fields.keys():
        kind = "backdoorbench"
    others = tuple(other for other in networks if other not in ("", name))
    return Layout(kind, found[name], prefix, others)


def check_prefix(key: str, names: Iterable[str], valid: Iterable[str] = ()) -> str:
    """Return `key` as the start of some of the names, with its dot.

    Args:
        key: The start, without its dot.
        names: Of the tensors.
        valid: Other keys that a message should offer.

    Raises:
        Refusal: If no name begins with it.
    """
    prefix = f"{key}."
    if any(name.startswith(prefix) for name in names):
        return prefix
    starts = dict.fromkeys(name.partition(".")[0] for name in names if "." in name)
    offered = _listed([*valid, *starts])
    raise Refusal(
        f"holds no network under {key_advice(key)}",
        f"Valid are {offered}; or leave `checkpoint_key` out" if offered else "Leave it out",
    )


def _state_dicts(root: Pairs) -> Iterator[tuple[str, Pairs]]:
    """Walk the dictionaries in dictionaries, and yield those that hold tensors by name."""
    level = [("", root)]
    seen: set[int] = set()
    for _ in range(_DEEPEST):
        following = []
        for name, pairs in level:
            if id(pairs) in seen or len(seen) >= _MOST:
                continue
            seen.add(id(pairs))
            fields = pairs.fields()
            if any(isinstance(value, TensorRef) for value in fields.values()):
                yield name, pairs
            following += [
                (f"{name}.{key}" if name else key, value)
                for key, value in fields.items()
                if isinstance(value, Pairs)
            ]
        level = following


def _is_network(pairs: Pairs) -> bool:
    """Whether it holds a matrix: a best accuracy or a random state is none."""
    values = pairs.fields().values()
    return any(isinstance(value, TensorRef) and len(value.shape) > 1 for value in values)


def _usual(found: dict[str, Pairs], networks: dict[str, Pairs]) -> str | None:
    usual = [name for name in _WRAPPERS if name in found]
    if usual:
        return usual[0]
    candidates = list(networks or found)
    return candidates[0] if len(candidates) == 1 or candidates[:1] == [""] else None


def _named(key: str, found: dict[str, Pairs], usual: str | None) -> tuple[str, str]:
    around = [name for name in found if name and f"{key}.".startswith(f"{name}.")]
    name = max(around, key=len, default=usual)
    if name == key:
        return key, ""
    rest = key.removeprefix(f"{name}.") if around else key
    names = [] if name is None else list(found[name].fields())
    return name or "", check_prefix(rest, names, filter(None, found))


def _undecided(fields: dict[str, object], found: dict[str, Pairs]) -> Refusal:
    if found:
        first = next(iter(found))
        return Refusal(
            f"holds several state_dicts: {_listed(found)}",
            f"Say which one to take, such as {key_advice(first)}",
        )
    for value in map(fields.get, _WRAPPERS):
        if isinstance(value, Foreign):
            return value.why
    names = _listed(fields) or "none"
    if any(isinstance(v, Foreign) and v.name.startswith("numpy.") for v in fields.values()):
        return Refusal(
            f"holds NumPy arrays under {names}, and no tensors",
            "Save tensors: torch.save({name: torch.from_numpy(array) for ...}, ...)",
        )
    return Refusal(f"holds no state_dict; its keys are {names}", _VALID)


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = ", ..." if len(every) > _LISTED else ""
    return ", ".join(shown(name) for name in every[:_LISTED]) + more
