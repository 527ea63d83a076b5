"""How the names in a file map to the names of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from fst_lightning.checkpoints.errors import CheckpointError, key_advice, shown
from fst_lightning.checkpoints.folding import Fold

__all__ = ["KeyMap", "is_counter", "match_keys"]

_WRAPPERS = {"module", "model", "net", "network", "backbone", "_orig_mod"}
_TRANSPARENT = {"module", "_orig_mod"}
_DEEPEST = 8
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class KeyMap:
    """Which name of the file is which name of the network.

    Args:
        to_net: The file's name to the network's name, for every pair.
        prefix: The prefix of the network's names in the file, with its dot.
        missing: Names of the network that the file lacks; BatchNorm's counters are left out.
        unexpected: Names under the prefix that the network lacks.
        outside: Names that do not begin with the prefix.
        folds: Weights that the file holds in parts.
        kept: Tensors of the file that are not the network's and go back as they are.
    """

    to_net: Mapping[str, str]
    prefix: str = ""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    folds: tuple[Fold, ...] = ()
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    _to_file: dict[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_to_file", {net: file for file, net in self.to_net.items()})

    @property
    def to_file(self) -> Mapping[str, str]:
        """The network's name to the file's name."""
        return dict(self._to_file)

    def restore(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under the names of the file.

        BatchNorm's `num_batches_tracked` gets a name in the file's style, or is left out if the
        file has none at all. Any other name that the file does not know gets the file's prefix. A
        weight that the file holds in parts is split again.

        Args:
            state_dict: Tensors under the network's names.

        Raises:
            CheckpointError: If two tensors would get one name.
        """
        counted = any(name.endswith(_COUNTER) for name in self.to_net)
        restored: dict[str, Tensor] = {}
        for name, tensor in state_dict.items():
            file_name = self._to_file.get(name)
            if file_name is None:
                if is_counter(name) and not counted:
                    continue
                file_name = self._in_style(name)
            if file_name in restored:
                raise CheckpointError(
                    f"Expected one tensor for every name, but two belong to {shown(file_name)}."
                )
            restored[file_name] = tensor
        for fold in self.folds:
            if fold.name in restored:
                restored.update(zip(fold.parts, fold.split(restored.pop(fold.name)), strict=True))
        return restored | dict(self.kept)

    def _in_style(self, name: str) -> str:
        parent, _, last = name.rpartition(".")
        for sibling in ("running_mean", "running_var", "weight", "bias"):
            known = self._to_file.get(f"{parent}.{sibling}" if parent else sibling)
            if known is not None:
                return known.removesuffix(sibling) + last
        return self.prefix + name


def match_keys(
    file_names: Iterable[str], net_names: Iterable[str], *, source: str = "the checkpoint"
) -> KeyMap:
    """Find the prefix and the renamings that make the file's names the network's names.

    Of all prefixes in the file the one with the most matches counts; among equals the usual
    wrappers (`module.`, `model.`, `net.`, `network.`, `backbone.`, `_orig_mod.`) go first, then the
    shorter one. Inside names, `shortcut` equals `downsample`, the layer `linear` equals `fc`, and
    the wrappers `module` and `_orig_mod` count for nothing.

    Args:
        file_names: Names in the file.
        net_names: Names in the network's state_dict.
        source: What an error calls the file.

    Raises:
        CheckpointError: If two names of the file mean one name of the network, or two parts of the
            file fit equally well.

    Example:
        >>> match_keys(["module.linear.bias"], ["fc.bias"]).to_net
        {'module.linear.bias': 'fc.bias'}
    """
    files, nets = list(file_names), list(net_names)
    key_map = _match(files, nets, source)
    wrapper = _shared_prefix(nets)
    if key_map.to_net or not wrapper:
        return key_map
    inner = _match(files, [name.removeprefix(wrapper) for name in nets], source)
    if not inner.to_net:
        return key_map
    return replace(
        inner,
        to_net={file: wrapper + net for file, net in inner.to_net.items()},
        missing=tuple(wrapper + name for name in inner.missing),
    )


def _shared_prefix(names: list[str]) -> str:
    """Return what all names begin with, up to a dot."""
    shared = ""
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared += f"{parts[0]}."
    return shared


def _match(files: list[str], nets: list[str], source: str) -> KeyMap:
    exact = set(nets)
    alike = Counter(_canonical(name) for name in nets)
    canonical = {_canonical(name): name for name in nets if alike[_canonical(name)] == 1}

    def find(rest: str) -> str | None:
        if rest in exact:
            return rest
        if rest.split(".", 1)[0] in _TRANSPARENT:
            return None  # a wrapper at the start belongs to the prefix
        return canonical.get(_canonical(rest))

    prefix = _best_prefix(files, find, source)
    to_net: dict[str, str] = {}
    taken: dict[str, str] = {}
    unexpected = []
    for name in files:
        if not name.startswith(prefix):
            continue
        target = find(name.removeprefix(prefix))
        if target is None:
            unexpected.append(name)
        elif target in taken:
            raise CheckpointError(
                f"{source}: {shown(taken[target])} and {shown(name)} both mean {shown(target)}. "
                "Remove one of them from the file."
            )
        else:
            to_net[name] = target
            taken[target] = name
    return KeyMap(
        to_net=to_net,
        prefix=prefix,
        missing=tuple(n for n in nets if n not in taken and not is_counter(n)),
        unexpected=tuple(unexpected),
        outside=tuple(name for name in files if not name.startswith(prefix)),
    )


def _best_prefix(files: list[str], find: Callable[[str], str | None], source: str) -> str:
    matches: dict[str, int] = {"": 0}
    for name in files:
        start = 0
        for _ in range(_DEEPEST + 1):
            if find(name[start:]) is not None:
                matches[name[:start]] = matches.get(name[:start], 0) + 1
            start = name.find(".", start) + 1
            if start == 0:
                break

    def rank(prefix: str) -> tuple[int, bool, int]:
        segments = prefix.split(".")[:-1]
        return matches[prefix], set(segments) <= _WRAPPERS, -len(segments)

    ranked = sorted(matches, key=rank, reverse=True)
    if len(ranked) > 1 and matches[ranked[0]] and rank(ranked[0]) == rank(ranked[1]):
        raise CheckpointError(
            f"{source}: the names under {shown(ranked[0])} and under {shown(ranked[1])} fit the "
            f"network equally well. Say which one to take, such as {key_advice(ranked[0])}."
        )
    return ranked[0]


def _canonical(name: str) -> str:
    segments = [
        "downsample" if segment == "shortcut" else segment
        for segment in name.split(".")
        if segment not in _TRANSPARENT
    ]
    if segments[:1] == ["linear"]:
        segments[0] = "fc"
    return ".".join(segments)


def is_counter(name: str) -> bool:
    """Whether a tensor counts the batches that a BatchNorm layer has seen."""
    return name.rpartition(".")[2] == _COUNTER
