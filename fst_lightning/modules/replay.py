"""Steps of a network as CUDA graphs: the host launches one graph instead of hundreds of kernels."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import get_world_size, is_initialized
from torch.func import functional_call

Replay = Callable[[Tensor, Callable[[], None]], Tensor]

_EAGER_CALLS = 2
"""Calls of a shape before it is captured: rare shapes are not worth a capture."""

_MOST_GRAPHS = 4
"""Captures at most; each keeps the activations of its mini-batch."""

_WARM_UP = 3
"""Passes before a capture, in which libraries choose their kernels."""

_MOST_KINDS = 100
"""Shapes that are counted at most."""


class ReplayedNetwork(nn.Module):
    """Captures the forward and backward passes of a network once, and then replays them.

    On a large GPU a step of a small network takes the host longer to launch than the device to
    compute. From the third batch of a shape on, ``forward`` replays a capture of the network's
    kernels: the same kernels in the same order, on the same weights. It calls the network itself if
    a replay would differ: without gradients, on a CPU, with several processes, with gradients of
    the images, with hooks, and for a second batch before the gradients of the first. A network
    whose weights, modes or buffers were replaced is captured again. A network that takes other
    decisions in Python from step to step must not be replayed.

    The gradients of a call can be computed once, because this overwrites the activations. ``grad``
    is valid until the next call: set :attr:`enabled` to False to accumulate gradients over several.

    Args:
        net: The network, unchanged; it is not a submodule.
        enabled: Whether to replay; False always calls the network itself.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> images = torch.zeros(1, 2)
        >>> torch.equal(ReplayedNetwork(net)(images), net(images))
        True
    """

    def __init__(self, net: nn.Module, enabled: bool = True) -> None:
        super().__init__()
        self._net = (net,)
        self.enabled = enabled
        self._calls: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, Replay] = {}
        self._waiting = False
        self._refused = False

    def forward(self, images: Tensor) -> Tensor:
        """Classify ``(N, C, H, W)`` network inputs: logits ``(N, num_classes)``."""
        net = self._net[0]
        kind = self._kind(net, images) if self._may_replay(images) else None
        if kind is None:
            return net(images)  # type: ignore[no-any-return]
        graph = self._graphs.get(kind)
        if graph is None:
            graph = self._capture(kind, images)
        if graph is None:
            return net(images)  # type: ignore[no-any-return]
        self._waiting = True
        return graph(images, self._done)

    def clear(self) -> None:
        """Free the memory of the graphs."""
        self._graphs.clear()
        self._calls.clear()
        self._waiting = False

    def _capture(self, kind: Hashable, images: Tensor) -> Replay | None:
        if len(self._calls) == _MOST_KINDS:
            self._calls.clear()  # A network that changes in every step is never captured.
        self._calls[kind] += 1
        if self._calls[kind] <= _EAGER_CALLS or len(self._graphs) == _MOST_GRAPHS:
            return None
        try:
            graph = self._graphs[kind] = capture(self._net[0], images)
        except RuntimeError as error:
            self._refused = True
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"The steps of this network are not replayed as CUDA graphs: {reason}", stacklevel=2
            )
            return None
        return graph

    def _may_replay(self, images: Tensor) -> bool:
        return (
            self.enabled
            and not (self._waiting or self._refused)
            and images.is_cuda
            and not images.requires_grad
            and torch.is_grad_enabled()
            and not (is_initialized() and get_world_size() > 1)
        )

    def _kind(self, net: nn.Module, images: Tensor) -> Hashable | None:
        """What a capture treats as constant; None if there is a hook, which it would skip.

        It does not use ``parameters()``, because it runs in each step.
        """
        kind: list[Hashable] = [
            images.shape,
            images.dtype,
            torch.is_autocast_enabled("cuda"),
            torch.get_autocast_dtype("cuda"),
        ]
        parts = [net]
        while parts:
            part = parts.pop()
            if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks:
                return None
            kind.append(part.training)
            for tensors in (part._parameters, part._buffers):
                for tensor in tensors.values():
                    if tensor is not None:
                        kind += id(tensor), tensor.data_ptr(), tensor.requires_grad
            parts += [child for child in part._modules.values() if child is not None]
        return tuple(kind)

    def _done(self) -> None:
        self._waiting = False


class Capture:
    """A network's forward and backward pass on a batch of one shape, as two CUDA graphs.

    It is made by :func:`capture`. A call takes images and a function that runs when gradients are
    computed, and returns logits.
    """

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        named = dict(net.named_parameters())
        self.parameters = [p for p in named.values() if p.requires_grad]
        self.images = images.clone()
        # Not the parameters themselves, which would then accumulate gradients on the stream of the
        # capture, so that each step would wait for both streams.
        aliases = {name: p.detach().requires_grad_(p.requires_grad) for name, p in named.items()}
        trained = [alias for alias in aliases.values() if alias.requires_grad]
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        here = torch.cuda.current_stream()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                logits = functional_call(net, aliases, self.images)
                torch.autograd.grad(logits, trained, torch.zeros_like(logits), allow_unused=True)
        here.wait_stream(aside)
        with torch.cuda.graph(self._forward, stream=aside):
            self.logits: Tensor = functional_call(net, aliases, self.images)
        self.gradient = torch.zeros_like(self.logits)
        with torch.cuda.graph(self._backward, pool=self._forward.pool(), stream=aside):
            self.gradients = torch.autograd.grad(
                self.logits, trained, self.gradient, allow_unused=True
            )

    def __call__(self, images: Tensor, done: Callable[[], None]) -> Tensor:
        """Logits of images of the captured shape, with a gradient for the parameters."""
        logits: Tensor = _Replay.apply(self, done, images, *self.parameters)
        return logits

    def answer(self, images: Tensor) -> Tensor:
        """Replay the forward pass: logits, which lie in the graph's memory."""
        self.images.copy_(images)
        self._forward.replay()
        return self.logits.detach()

    def take_gradients(self, gradient: Tensor) -> Sequence[Tensor | None]:
        """Replay the backward pass: the gradients of the parameters."""
        self.gradient.copy_(gradient)
        self._backward.replay()
        return [None if g is None else g.detach() for g in self.gradients]


class _Replay(torch.autograd.Function):
    """Connects a capture with the parameters."""

    @staticmethod
    def forward(
        ctx: Any, graph: Capture, done: Callable[[], None], images: Tensor, *_: Tensor
    ) -> Tensor:
        ctx.graph, ctx.done = graph, done
        return graph.answer(images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.done()
        return (None, None, None, *ctx.graph.take_gradients(gradient))


def capture(net: nn.Module, images: Tensor) -> Replay:
    """Capture the forward and backward pass of a network, which does not change.

    Args:
        net: The network on a GPU, in the mode to capture.
        images: ``(N, C, H, W)``; the capture takes batches of this shape.
    """
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    autocast = torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        cache_enabled=False,  # Weights cast outside of the graph would be constants.
    )
    with torch.random.fork_rng([images.device]), autocast:
        graph = Capture(net, images)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)  # BatchNorm has seen the mini-batch several times.
    return graph
