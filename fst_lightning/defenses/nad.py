"""Neural attention distillation (NAD): look at what a fine-tuned teacher looks at.

Example:
    ``python purify.py attack=blended defense=nad``
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.defense import Defense
from fst_lightning.defenses.common.snapshot import call_with, snapshot
from fst_lightning.defenses.common.whole_set import keep_modes, tune
from fst_lightning.validate import check_number, check_numbers


class NeuralAttentionDistillation(Defense):
    r"""Tune the network, and keep its attention maps close to those of a fine-tuned teacher.

    *How it works.* An attention map says which parts of an image excite a layer. On triggered
    images, a backdoored network attends to the trigger. The defense first fine-tunes a copy of the
    network on clean images, the teacher, whose attention is less disturbed. It then tunes the
    network itself on clean images and pulls its attention maps towards those of the teacher.

    .. math:: \min_\theta \mathrm{CE}(f(x), y) + \sum_l \beta_l \, \mathrm{mean}\left(
        \frac{A^T_l}{\|A^T_l\|_2} - \frac{A^S_l}{\|A^S_l\|_2}\right)^2, \qquad
        A_l = \sum_c |F_{l,c}|^p

    with the network :math:`f` and its parameters :math:`\theta`, the features :math:`F_{l,c}` of
    layer :math:`l` in channel :math:`c`, their attention maps :math:`A_l` of teacher (:math:`T`)
    and student (:math:`S`), the power :math:`p`, the weights :math:`\beta_l`, and the mean over
    images and positions.

    Args:
        beta: Weights :math:`\beta_l`, 0 or more, one per layer in the order of the forward pass. If
            the network has fewer stages, the last weights are used.
        power: Power :math:`p`, greater than 0.
        layers: Dotted names of the layers, whose outputs are ``(N, C, H, W)``. None uses the last
            module at each of the last spatial resolutions above 1 x 1.
        teacher_epochs: Passes over the clean images to train the teacher, 0 or more.
        teacher_lr: Learning rate of the teacher, greater than 0.
        teacher_batch_size: Images per step of the teacher, 2 or more.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range, a name is not in the network, or no layer
            has spatial features.

    Needs:
        Clean images with true labels, and layers with spatial feature maps.

    Cost:
        ``teacher_epochs`` of fine-tuning for the teacher. Each step then adds one forward pass of
        the teacher.

    When it fails:
        If fine-tuning leaves the backdoor in the teacher, the student learns to look at the trigger
        as well. Triggers without a place, such as a pattern over the whole image, hardly show in
        attention maps.

    Note:
        The teacher is trained without augmentation. Much of the effect comes from the fine-tuning
        itself, so compare with ``defense=ft``.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> find_stages(net, torch.rand(1, 3, 4, 4))
        ['1']

    References:
        Li, Lyu, Koren, Lyu, Li and Ma, "Neural attention distillation: Erasing backdoor triggers
        from deep neural networks", ICLR 2021, arXiv 2101.05930.

    See Also:
        - :class:`~fst_lightning.defenses.FineTuning`: without the teacher.
        - :class:`~fst_lightning.defenses.ModeConnectivityRepair`: combines both networks' weights.
    """

    teacher: Tensor
    """The teacher's weights; empty before :meth:`prepare`."""

    def __init__(
        self,
        beta: Sequence[float] = (500.0, 1000.0, 1000.0),
        power: float = 2.0,
        layers: Sequence[str] | None = None,
        teacher_epochs: int = 10,
        teacher_lr: float = 0.01,
        teacher_batch_size: int = 128,
    ) -> None:
        super().__init__()
        check_numbers("beta", beta)
        check_number("power", power, low_open=True)
        check_number("teacher_epochs", teacher_epochs, whole=True)
        check_number("teacher_lr", teacher_lr, low_open=True)
        check_number("teacher_batch_size", teacher_batch_size, low=2, whole=True)
        if layers is not None and (isinstance(layers, str) or len(layers) != len(beta)):
            raise ValueError(
                f"Expected `layers` to name one layer for each of the {len(beta)} numbers in "
                f"`beta`, but got {layers!r}."
            )
        self.beta = tuple(beta)
        self.power = power
        self.layers = None if layers is None else list(layers)
        self.teacher_epochs = teacher_epochs
        self.teacher_lr = teacher_lr
        self.teacher_batch_size = teacher_batch_size
        self.register_buffer("teacher", torch.empty(0))
        self._stages: list[str] = []
        self._distance: Tensor | None = None

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Check the names of the layers; the teacher starts as the backdoored network."""
        self._stages, self._distance = [], None
        if self.layers is not None:
            check_names(net, self.layers)
            self._stages = self.layers
        self.teacher = snapshot(net)

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Find the layers and train the teacher."""
        self._find(net, next(clean.batches(1))[0])
        teacher = copy.deepcopy(net)
        tune(
            teacher,
            clean,
            generator,
            epochs=self.teacher_epochs,
            lr=self.teacher_lr,
            batch_size=self.teacher_batch_size,
        )
        self.teacher = snapshot(teacher)

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy plus the distance from the teacher's attention."""
        self._find(net, images)
        with outputs(net, self._stages) as found:
            with torch.no_grad():
                call_with(net, self.teacher, images)
            taught = [attention(found[name], self.power) for name in self._stages]
            logits = net(images)
            learned = [attention(found[name], self.power) for name in self._stages]
        weights = self.beta[-len(self._stages) :]
        distances = [
            weight * (wanted - got).square().mean()
            for weight, wanted, got in zip(weights, taught, learned, strict=True)
        ]
        distance = torch.stack(distances).sum()
        self._distance = distance.detach()
        return functional.cross_entropy(logits, labels) + distance

    def _find(self, net: nn.Module, images: Tensor) -> None:
        # Not only in `study`, which a resumed run skips.
        if not self._stages:
            self._stages = find_stages(net, images[:1])[-len(self.beta) :]

    def statistics(self) -> dict[str, Tensor]:
        """The weighted distance from the teacher's attention on the last batch."""
        return {} if self._distance is None else {"attention_distance": self._distance}

    def findings(self) -> dict[str, Any]:
        """The layers whose attention was compared."""
        return {"layers": list(self._stages)}


def attention(features: Tensor, power: float = 2.0) -> Tensor:
    r"""The attention map :math:`\sum_c |F_c|^p` of each image, scaled to length 1.

    Args:
        features: ``(N, C, H, W)``; ``(N, H, W, C)`` if the first two sizes are equal and the last
            two are not, as in Swin transformers.
        power: Power :math:`p`, greater than 0.

    Returns:
        ``(N, H * W)`` float32.

    Example:
        >>> attention(torch.tensor([[[[0.0, 1.0]], [[2.0, 0.0]]]])).mul(17**0.5).round().tolist()
        [[4.0, 1.0]]
    """
    channels = 3 if _channels_last(features.shape) else 1
    maps = features.float().abs().pow(power).sum(channels).flatten(1)
    return functional.normalize(maps, dim=1)


def find_stages(net: nn.Module, images: Tensor) -> list[str]:
    """The last module of each spatial resolution above 1 x 1, in the order of the forward pass.

    Of nested modules, the outermost counts: a block that starts with a BatchNorm layer for its own
    input does not end the stage before it.

    Args:
        net: The network; called once, in evaluation mode.
        images: ``(N, C, H, W)``, normalized.

    Raises:
        ValueError: If no module has 4-D outputs.
    """
    names = [name for name, _ in net.named_modules() if name]
    with outputs(net, names) as found, keep_modes(net), torch.no_grad():
        net.eval()
        net(images)
    stages: dict[tuple[int, int], str] = {}
    for name, output in found.items():
        if output.dim() != 4 or max(_resolution(output.shape)) == 1:
            continue
        best = stages.setdefault(_resolution(output.shape), name)
        if name.count(".") <= best.count("."):
            stages[_resolution(output.shape)] = name
    if not stages:
        raise ValueError(
            f"Expected a network with features of (N, C, H, W) to compare attention in, but "
            f"{type(net).__name__} has none. Use a defense that needs none, such as fst or ft_sam."
        )
    return [name for name in found if name in stages.values()]


def check_names(net: nn.Module, names: Sequence[str]) -> None:
    """Refuse names that are not modules of a network.

    Raises:
        ValueError: If a name is unknown; suggests the closest one.
    """
    known = [name for name, _ in net.named_modules() if name]
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            raise ValueError(
                f"Expected `layers` to name modules of the network, but `{name}` is none.{hint}"
            )


@contextmanager
def outputs(net: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the output of each named module's last call, in the order of these calls."""
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in names:

            def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor):
                    found.pop(name, None)
                    found[name] = output

            hooks.enter_context(net.get_submodule(name).register_forward_hook(keep))
        yield found


def _channels_last(shape: torch.Size) -> bool:
    return shape[1] == shape[2] != shape[3]


def _resolution(shape: torch.Size) -> tuple[int, int]:
    return (shape[1], shape[2]) if _channels_last(shape) else (shape[2], shape[3])
