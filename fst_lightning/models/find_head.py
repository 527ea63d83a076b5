"""The last linear layer of a classifier, found without a forward pass."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import NamedTuple

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter

from fst_lightning.models.bounds import check_bounds

Linears = dict[str, nn.Linear]


def find_head(
    module: nn.Module, path: str | None = None, num_classes: int | None = None
) -> tuple[str, nn.Linear]:
    """Find the linear layer that turns features into logits.

    The first of these that answers: the given path; what a timm model declares; among the linear
    layers with ``num_classes`` outputs (``config.num_labels`` of a transformers model where it is
    not given) the one registered last. Auxiliary heads (``aux...``) are left out. The network may
    be wrapped in another module, a LightningModule for example.

    Args:
        module: The network.
        path: Dotted name of the head, as in ``named_modules()``; None to search.
        num_classes: Number of classes where known, at least 1.

    Returns:
        The dotted name of the head and the layer itself.

    Raises:
        ValueError: The path is wrong, no layer or more than one could be the head, or its weight
            is no plain parameter.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> find_head(net)
        ('2', Linear(in_features=4, out_features=3, bias=True))
    """
    if num_classes is not None:
        check_bounds(num_classes=num_classes)
    linears: Linears = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)
    }
    if path is not None:
        name = _checked_path(module, path, num_classes, linears)
    else:
        name = _declared(module, num_classes, linears) or _last(module, num_classes, linears)
    _check_weight(name, linears[name])
    return name, linears[name]


def _checked_path(module: nn.Module, path: str, num_classes: int | None, linears: Linears) -> str:
    if path not in linears:
        try:
            found = type(module.get_submodule(path)).__name__
        except AttributeError:
            close = get_close_matches(path, linears, n=1)
            found = "no module of this name" + (f"; did you mean `{close[0]}`?" if close else "")
        raise _refusal(f"Expected `head` to name an nn.Linear, but `{path}` is {found}.", linears)
    if num_classes is not None and linears[path].out_features != num_classes:
        raise _refusal(
            f"Expected the head `{path}` to have {num_classes} outputs, one a class, "
            f"but it has {linears[path].out_features}.",
            linears,
        )
    return path


def _declared(module: nn.Module, num_classes: int | None, linears: Linears) -> str | None:
    """Return the one head that timm models in the module declare, None where there is none."""
    heads = []
    for prefix, names in _declarations(module):
        present = [name for name in names if _has_parameters(module, name)]
        if len(present) > 1:
            raise _ambiguous(present, linears)
        for name in present:
            if name not in linears:
                raise _refusal(
                    f"The network declares `{name}` as its head, which is "
                    f"{type(module.get_submodule(name)).__name__}, not nn.Linear.",
                    linears,
                )
            if num_classes in (None, linears[name].out_features):
                heads.append((prefix, name))
    if not heads:
        return None
    (prefix, name), *others = heads
    outputs = linears[name].out_features
    # A layer outside the declaring network that takes its logits makes them features.
    rivals = [other for _, other in others] + [
        other
        for other, layer in linears.items()
        if num_classes in (None, layer.out_features)
        and layer.in_features == outputs
        and not _inside(other, prefix)
    ]
    if rivals:
        raise _ambiguous([name, *rivals], linears)
    return name


def _declarations(module: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Yield the names of the outermost timm models and of the heads each declares."""
    outermost: list[str] = []
    for name, network in module.named_modules():
        if any(_inside(name, outer) for outer in outermost):
            continue
        for attribute in ("pretrained_cfg", "default_cfg"):
            declaration = getattr(network, attribute, None)
            if not isinstance(declaration, Mapping):
                continue
            entry = declaration.get("classifier")
            heads = [entry] if isinstance(entry, str) else entry
            if heads and isinstance(heads, list | tuple):
                outermost.append(name)
                yield name, [_join(name, str(head)) for head in heads]
                break


def _has_parameters(module: nn.Module, name: str) -> bool:
    try:
        return any(True for _ in module.get_submodule(name).parameters())
    except AttributeError:
        return False


def _last(module: nn.Module, num_classes: int | None, linears: Linears) -> str:
    plain = {
        name: layer
        for name, layer in linears.items()
        # The output projection of nn.MultiheadAttention is of this class: never a head.
        if not _auxiliary(name) and not isinstance(layer, NonDynamicallyQuantizableLinear)
    }
    known = num_classes or _num_labels(module, plain)
    if known is None:
        # A timm model that declares a head and has none is a feature extractor.
        headless = [
            prefix
            for prefix, names in _declarations(module)
            if not any(name in linears for name in names)
        ]
        candidates = [n for n in plain if not any(_inside(n, prefix) for prefix in headless)]
    else:
        candidates = [name for name, layer in plain.items() if layer.out_features == known]
    if not candidates:
        kind = "linear layer" if known is None else f"linear layer with {known} outputs"
        raise _refusal(f"Found no {kind} that could be the head.", linears)
    last = candidates[-1]
    rivals = _rivals(module, last, candidates, plain)
    if known is None and plain[last].out_features == 1 and not rivals:
        # One output beside a whole network: a discriminator or critic, not the classifier.
        top = last.partition(".")[0]
        rivals = [name for name in plain if "." in name and name.partition(".")[0] != top]
    if rivals:
        raise _ambiguous([*rivals, last], linears)
    return last


def _num_labels(module: nn.Module, plain: Linears) -> int | None:
    """Return ``config.num_labels`` of the first transformers model that has such a layer."""
    for name, network in module.named_modules():
        labels = getattr(getattr(network, "config", None), "num_labels", None)
        # A bare encoder has the entry too (2 unless set) and no layer to match.
        if isinstance(labels, int) and any(
            _inside(linear, name) and layer.out_features == labels
            for linear, layer in plain.items()
        ):
            return labels
    return None


class _Branch(NamedTuple):
    """A child of some module, seen as one step from its first linear layer to its last."""

    module: nn.Module
    last: str
    inputs: int
    outputs: int


def _rivals(module: nn.Module, last: str, candidates: list[str], plain: Linears) -> list[str]:
    """Return candidates that stand beside the last one rather than before it.

    At every level above the last candidate, its branch is compared with those registered before it.
    One is a rival if it has equally many inputs (layers, or modules of one class) or outputs, and
    no chain of branches leads from its outputs to the inputs of the last one.
    """
    parts = last.split(".") if last else []  # No name: the module is the layer itself.
    rivals = []
    for depth in range(len(parts)):
        parent = ".".join(parts[:depth])
        network = module.get_submodule(parent)
        if isinstance(network, nn.Sequential):
            continue  # What stands in a Sequential is a chain.
        branches = []
        for child_name, child in network.named_children():
            prefix = _join(parent, child_name)
            inside = [name for name in plain if _inside(name, prefix)]
            if inside:
                first, final = plain[inside[0]], plain[inside[-1]]
                branches.append(_Branch(child, inside[-1], first.in_features, final.out_features))
            if child_name == parts[depth]:
                break
        own = branches.pop()
        reaching = {own.inputs}  # Sizes from which branches lead to the last one.
        for branch in reversed(branches):
            if branch.outputs in reaching:
                reaching.add(branch.inputs)
                continue
            same_inputs = branch.inputs == own.inputs and _alike(branch.module, own.module)
            if branch.last in candidates and (same_inputs or branch.outputs == own.outputs):
                rivals.append(branch.last)
    return [name for name in plain if name in rivals]


def _alike(one: nn.Module, other: nn.Module) -> bool:
    layers = (nn.Linear, nn.Sequential)
    return type(one) is type(other) or (isinstance(one, layers) and isinstance(other, layers))


def _check_weight(name: str, layer: nn.Linear) -> None:
    # Not `layer.weight`: weight_norm and parametrisations compute it anew at every access.
    weight = layer._parameters.get("weight")
    if isinstance(weight, UninitializedParameter):
        raise ValueError(
            f"The head `{name}` is lazy and has no weight yet: pass one batch through the network "
            "first."
        )
    if weight is None or weight.shape != (layer.out_features, layer.in_features):
        raise ValueError(
            f"Expected the weight of the head `{name}` to be a plain parameter of shape "
            f"({layer.out_features}, {layer.in_features}), but {type(layer).__name__} computes it "
            "from others (weight_norm, parametrisation, pruning or packing). Fold it in first, "
            "with torch.nn.utils.remove_weight_norm or torch.nn.utils.parametrize."
            "remove_parametrizations for example."
        )


def _auxiliary(name: str) -> bool:
    return any(part.lower().startswith("aux") for part in name.split("."))


def _inside(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _ambiguous(names: list[str], linears: Linears) -> ValueError:
    listed = ", ".join(f"`{name}`" for name in dict.fromkeys(names))
    return _refusal(f"More than one layer could be the head: {listed}.", linears)


def _refusal(found: str, linears: Linears) -> ValueError:
    lines = [
        f"  {name or '(the module itself)'}: {layer.in_features} -> {layer.out_features}"
        for name, layer in linears.items()
    ]
    listing = "\n".join(["Its linear layers:", *lines]) if lines else "It has no linear layer."
    return ValueError(f'{found} Name the head: pass head="dotted.name". {listing}')
