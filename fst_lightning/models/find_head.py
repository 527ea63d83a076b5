"""The head of a classifier, found without a forward pass."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torchmetrics import Metric

from fst_lightning.models.bounds import check_bounds
from fst_lightning.models.chain import last_layers
from fst_lightning.models.head import Head, is_head, num_inputs, num_outputs

Heads = dict[str, Head]
_COMPILED = "_orig_mod"


def find_head(
    module: nn.Module, path: str | None = None, num_classes: int | None = None
) -> tuple[str, Head]:
    """Find the linear layer that turns features into logits.

    The function uses the first of these: the given path; what a timm model declares; the layer that
    ends the network. A linear layer ends a network if no other layer takes its output
    (:func:`~fst_lightning.models.chain.last_layers`). A convolution with a 1x1 kernel counts as a
    linear layer. If the number of classes is known, only layers with as many outputs count;
    ``config.num_labels`` of a transformers model gives this number. Auxiliary heads (``aux...``)
    and the networks inside a ``torchmetrics.Metric`` are left out. The network may be wrapped in
    another module, such as a LightningModule.

    Args:
        module: The network.
        path: Dotted name of the head, as in ``named_modules()``; None to search.
        num_classes: Number of classes, at least 1; None if it is unknown.

    Returns:
        The dotted name of the head and the layer itself.

    Raises:
        ValueError: If the path is wrong, if no layer or more than one could be the head (two tasks,
            two networks, or any linear layer beside the network), or if its weight is not a plain
            parameter.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> find_head(net)
        ('2', Linear(in_features=4, out_features=3, bias=True))
    """
    if num_classes is not None:
        check_bounds(num_classes=num_classes)
    layers = {name: layer for name, layer in module.named_modules() if is_head(layer)}
    name = (
        _search(module, num_classes, layers)
        if path is None
        else _checked_path(module, path, num_classes, layers)
    )
    _check_weight(name, layers[name])
    return name, layers[name]


def _checked_path(module: nn.Module, path: str, num_classes: int | None, layers: Heads) -> str:
    if f"{path}.{_COMPILED}" in layers:  # torch.compile(head) wraps the layer
        path = f"{path}.{_COMPILED}"
    if path not in layers:
        try:
            found = type(module.get_submodule(path)).__name__
        except AttributeError:
            close = get_close_matches(path, layers, n=1)
            found = "no module of this name" + (f"; did you mean `{close[0]}`?" if close else "")
        raise _refusal(
            f"Expected `head` to name an nn.Linear or a 1x1 nn.Conv2d, but `{path}` is {found}.",
            layers,
        )
    outputs = num_outputs(layers[path])
    if num_classes not in (None, outputs):
        raise _refusal(
            f"Expected the head `{path}` to have {num_classes} outputs, one per class, "
            f"but it has {outputs}.",
            layers,
        )
    return path


def _search(module: nn.Module, num_classes: int | None, layers: Heads) -> str:
    candidates = {
        name: layer
        for name, layer in layers.items()
        if num_classes in (None, num_outputs(layer))
        and not _auxiliary(name)
        and not _measures(module, name)
    }
    plain = dict(candidates)
    declared: list[str] = []
    for prefix, heads in _declarations(module, layers):
        known = [name for name in heads if name in candidates]
        if known or (not heads and num_classes is None):
            declared += known
            for name in [*candidates]:
                if _inside(name, prefix) and name not in known:
                    del candidates[name]
    last = last_layers(module, candidates.values(), rivals_only=num_classes is not None)
    ends = {id(layer) for layer in last} | {id(layers[name]) for name in declared}
    found = [name for name, layer in candidates.items() if id(layer) in ends]
    if not found:
        kind = "linear layer" if num_classes is None else f"linear layer with {num_classes} outputs"
        raise _refusal(f"Found no {kind} that could be the head.", layers)
    name = found[-1]
    if len(found) == 1 and num_classes is None and not declared and num_outputs(layers[name]) == 1:
        # One output beside a whole network: a discriminator or critic, not the classifier.
        top = name.partition(".")[0]
        found = [n for n in plain if "." in n and n.partition(".")[0] != top] + found
    if len(found) > 1:
        raise _ambiguous(found, layers)
    return name


def _declarations(module: nn.Module, layers: Heads) -> Iterator[tuple[str, list[str]]]:
    """Yield networks that say which layers are their heads; none for a feature extractor."""
    timm_models: list[str] = []
    for prefix, network in module.named_modules():
        labels = getattr(getattr(network, "config", None), "num_labels", None)
        if isinstance(labels, int):  # transformers
            own = {
                name: layer
                for name, layer in layers.items()
                if _inside(name, prefix) and num_outputs(layer) == labels
            }
            # A bare encoder has the entry too (2 unless set) and no layer to match.
            if own:
                yield prefix, _last(network, own, rivals_only=True)
            continue
        names = _timm_heads(network)
        if not names or any(_inside(prefix, outer) for outer in timm_models):
            continue
        timm_models.append(prefix)
        heads: list[str] = []
        paths = [_join(prefix, name) for name in names]
        for path in paths:
            if not _auxiliary(path) and _has_parameters(module, path):
                # Often replaced by an nn.Sequential.
                own = {name: layer for name, layer in layers.items() if _inside(name, path)}
                if not own:
                    raise _refusal(
                        f"The network declares `{path}` as its head, which is "
                        f"{type(module.get_submodule(path)).__name__}, not nn.Linear or a 1x1 "
                        "nn.Conv2d.",
                        layers,
                    )
                heads += _last(module.get_submodule(path), own)
        yield prefix, heads


def _timm_heads(network: nn.Module) -> list[str]:
    """Return the names of the heads that a timm model declares, in the model."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        declaration = getattr(network, attribute, None)
        if isinstance(declaration, Mapping):
            entry = declaration.get("classifier")
            heads = [entry] if isinstance(entry, str) else entry
            if heads and isinstance(heads, list | tuple):
                return [str(head) for head in heads]
    return []


def _last(network: nn.Module, layers: Heads, rivals_only: bool = False) -> list[str]:
    last = {id(layer) for layer in last_layers(network, layers.values(), rivals_only)}
    return [name for name, layer in layers.items() if id(layer) in last]


def _has_parameters(module: nn.Module, name: str) -> bool:
    try:
        return any(True for _ in module.get_submodule(name).parameters())
    except AttributeError:
        return False


def _measures(module: nn.Module, name: str) -> bool:
    """Whether a metric owns the layer: the Fréchet inception distance has a network inside."""
    parts = name.split(".")
    prefixes = (".".join(parts[:depth]) for depth in range(len(parts)))
    return any(isinstance(module.get_submodule(prefix), Metric) for prefix in prefixes)


def _check_weight(name: str, layer: Head) -> None:
    # Not `layer.weight`: weight_norm and parametrizations compute it at each access.
    weight = layer._parameters.get("weight")
    if isinstance(weight, UninitializedParameter):
        raise ValueError(
            f"The head `{name}` is lazy and has no weight yet: pass one batch through the network "
            "first."
        )
    kernel = (1, 1) if isinstance(layer, nn.Conv2d) else ()
    shape = num_outputs(layer), num_inputs(layer), *kernel
    if weight is None or weight.shape != shape:
        raise ValueError(
            f"Expected the weight of the head `{name}` to be a plain parameter of shape "
            f"{shape}, but {type(layer).__name__} computes it "
            "from others (weight_norm, parametrization, pruning or packing). Fold it in first, "
            "with torch.nn.utils.remove_weight_norm or torch.nn.utils.parametrize."
            "remove_parametrizations for example."
        )


def _auxiliary(name: str) -> bool:
    return any(part.lower().startswith("aux") for part in name.split("."))


def _inside(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _ambiguous(names: list[str], layers: Heads) -> ValueError:
    listed = ", ".join(f"`{name}`" for name in dict.fromkeys(names))
    return _refusal(f"More than one layer could be the head: {listed}.", layers)


def _refusal(found: str, layers: Heads) -> ValueError:
    # A network has many 1x1 convolutions; the message lists those that end it.
    lines = [
        f"  {name or '(the module itself)'}: {num_inputs(layer)} -> {num_outputs(layer)}"
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear) or f"`{name}`" in found
    ]
    listing = "\n".join(["Its linear layers:", *lines]) if lines else "It has no linear layer."
    return ValueError(
        f'{found} Name the head: head="dotted.name" in Python, '
        f"model.head=dotted.name on the command line (docs/models.md#the-head). {listing}"
    )
