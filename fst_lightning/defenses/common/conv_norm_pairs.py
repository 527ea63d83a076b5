"""Pairs of a convolution and the BatchNorm layer that it feeds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def conv_batchnorm_pairs(net: nn.Module) -> dict[str, str]:
    """Find the convolutions whose output goes to one BatchNorm layer, and nowhere else.

    The network's forward pass is traced symbolically. A BatchNorm layer that is fed by a sum (the
    first one of a pre-activation block) has no partner. If the forward pass can't be traced because
    it branches on values or shapes, a pair is a convolution directly before a BatchNorm layer in
    the same parent module. In both cases the numbers of channels must agree.

    Args:
        net: The network.

    Returns:
        The name of the convolution, by the name of the BatchNorm layer; in order of execution if
        the network can be traced, and otherwise of registration.

    Example:
        >>> conv_batchnorm_pairs(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
        {'1': '0'}
    """
    try:
        graph = _Tracer().trace(net)
    except Exception:  # A forward pass may fail in any way on symbolic inputs.
        pairs = _neighbors(net)
    else:
        pairs = _in_graph(net, graph)
    return {norm: conv for norm, conv in pairs.items() if _channels_agree(net, conv, norm)}


class _Tracer(fx.Tracer):
    """Does not trace into layers, including subclasses of PyTorch's layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Convolution | _BatchNorm) or super().is_leaf_module(
            m, module_qualified_name
        )


def _in_graph(net: nn.Module, graph: fx.Graph) -> dict[str, str]:
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    pairs: dict[str, str] = {}
    for node in graph.nodes:
        source: Any = node.args[0] if node.args else None
        if node.op != "call_module" or getattr(source, "op", None) != "call_module":
            continue
        once = calls[node.target] == calls[source.target] == len(source.users) == 1
        if (
            once
            and isinstance(net.get_submodule(node.target), _BatchNorm)
            and isinstance(net.get_submodule(source.target), Convolution)
        ):
            pairs[node.target] = source.target
    return pairs


def _neighbors(net: nn.Module) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for path, parent in net.named_modules():
        prefix = f"{path}." if path else ""
        children = list(parent.named_children())
        for (first, conv), (second, norm) in pairwise(children):
            if isinstance(conv, Convolution) and isinstance(norm, _BatchNorm):
                pairs[prefix + second] = prefix + first
    return pairs


def _channels_agree(net: nn.Module, conv: str, norm: str) -> bool:
    return bool(net.get_submodule(conv).out_channels == net.get_submodule(norm).num_features)
