"""Fine-pruning (FP): prune what clean images leave inactive, then tune the rest.

Example:
    ``python purify.py attack=blended defense=fp defense.max_pruning_ca_drop=0.05``
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.channel_masks import NOTHING_PRUNED
from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.defense import Defense
from fst_lightning.defenses.common.features import all_features
from fst_lightning.models import Head, apply_head, find_head, num_inputs
from fst_lightning.validate import check_number


class FinePruning(Defense):
    r"""Prune the features that are least active on clean images, and tune without them.

    *How it works.* Some neurons of a backdoored network respond to the trigger only, so that they
    are silent on clean images. The defense ranks the features in front of the head by their mean
    activation on clean images and removes the least active ones, as many as the clean accuracy
    allows. It then tunes the network, which also weakens the backdoor in the features that remain.

    .. math:: a_c = \frac1N \sum_i h_c(x_i), \qquad W_{\cdot c} = 0
        \;\text{for the}\; k \;\text{smallest}\; a_c, \qquad
        \min_\theta \mathrm{CE}(f_\theta(x), y)

    with the features :math:`h_c` that reach the head :math:`W`, the :math:`N` clean images
    :math:`x_i` and the parameters :math:`\theta` of the network :math:`f`. :math:`k` is the largest
    number, in steps of ``step``, for which held-out clean accuracy has not dropped by more than
    ``max_pruning_ca_drop``. Pruned columns stay zero while tuning.

    Args:
        max_pruning_ca_drop: Held-out clean accuracy that pruning may cost, 0 to 1.
        step: Share of the features that is pruned at a time, greater than 0 and at most 0.5.
        head: Dotted name of the linear head; None finds it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range, or no linear head is found.

    Needs:
        Clean images with true labels, and a linear head.

    Cost:
        One pass to rank the features; their pruning is judged on stored features. Then the tuning,
        like fine-tuning.

    When it fails:
        A backdoor that uses features which clean images also need is not pruned. Then only the
        fine-tuning is left.

    Note:
        The paper prunes channels of the last convolution; here the features in front of the head
        are pruned, which are these channels in a network that pools globally, including what a
        shortcut adds. Accuracy is measured on held-out clean images; public scripts use the test
        set.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> images = torch.rand(16, 3, 2, 2)
        >>> clean = CleanData(images, net(images).argmax(1))
        >>> defense = FinePruning(max_pruning_ca_drop=1.0)
        >>> defense.prepare(net, torch.Generator())
        >>> defense.study(net, clean, torch.Generator())
        >>> int(defense.pruned.sum())  # one feature always stays
        7

    References:
        Liu, Dolan-Gavitt and Garg, "Fine-pruning: Defending against backdooring attacks on deep
        neural networks", RAID 2018, arXiv 1805.12185.

    See Also:
        - :class:`~fst_lightning.defenses.AdversarialNeuronPruning`: finds channels by perturbing
          them.
        - :class:`~fst_lightning.defenses.ChannelLipschitzPruning`: finds channels without images.
    """

    held_out: ClassVar[float] = 0.2
    pruned: Tensor
    """Which features are pruned, ``(d,)`` bool; empty before :meth:`study`."""
    held_out_ca: Tensor
    """Held-out clean accuracy before and after pruning, ``(2,)``; empty before :meth:`study`."""
    refused_ca: Tensor
    """The accuracy after one more step, which costs too much, a scalar; empty if there is none."""

    def __init__(
        self, max_pruning_ca_drop: float = 0.1, step: float = 0.01, head: str | None = None
    ) -> None:
        super().__init__()
        check_number("max_pruning_ca_drop", max_pruning_ca_drop, high=1)
        check_number("step", step, high=0.5, low_open=True)
        self.max_pruning_ca_drop = max_pruning_ca_drop
        self.step = step
        self.head = head
        self.register_buffer("pruned", torch.empty(0, dtype=torch.bool))
        self.register_buffer("held_out_ca", torch.empty(0))
        self.register_buffer("refused_ca", torch.empty(0))
        # Kept in a list so that `nn.Module` does not register it and save its weights twice.
        self._linear: list[Head] = []

    @property
    def needs_head(self) -> bool:
        """True: it ranks the features in front of the head."""
        return True

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Find the head."""
        _, linear = find_head(net, self.head)
        self._linear = [linear]
        self.pruned = torch.zeros(num_inputs(linear), dtype=torch.bool)
        self.held_out_ca, self.refused_ca = torch.empty(0), torch.empty(0)

    @torch.no_grad()
    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Rank the features on the clean images, and prune as many as the held-out ones allow."""
        linear = self._linear[0]
        features = all_features(net, linear, clean)
        order = features.mean(0).argsort(stable=True)
        judges = clean if clean.held_out is None else clean.held_out
        features, labels = all_features(net, linear, judges), judges.labels

        def accuracy(pruned: Tensor) -> float:
            logits = apply_head(linear, features * ~pruned)
            return float((logits.argmax(1) == labels).float().mean())

        pruned = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        before = after = accuracy(pruned)
        size = max(1, round(self.step * len(order)))
        for count in range(size, len(order), size):
            more = pruned.clone()
            more[order[:count]] = True
            reached = accuracy(more)
            if reached < before - self.max_pruning_ca_drop - 1e-9:
                self.refused_ca = torch.tensor(reached, device=pruned.device)
                break
            pruned, after = more, reached
        self.pruned = pruned
        self.held_out_ca = torch.tensor([before, after], device=pruned.device)
        self.after_step()

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the pruned columns of the head at zero."""
        self._linear[0].weight[:, self.pruned] = 0

    def findings(self) -> dict[str, Any]:
        """The number and the names of the pruned features, and their cost before tuning."""
        if not len(self.held_out_ca):
            return {}
        count, total = int(self.pruned.sum()), len(self.pruned)
        before, after = self.held_out_ca.tolist()
        summary = (
            f"Pruned {count:,} of {total:,} features for {100 * (before - after):.1f} points of "
            "held-out accuracy before tuning."
        )
        if count == 0 and self.refused_ca.numel():
            cost = 100 * (before - float(self.refused_ca))
            summary = (
                f"The {max(1, round(self.step * total)):,} least active of {total:,} features cost "
                f"{cost:.1f} points of held-out accuracy; defense.max_pruning_ca_drop allows "
                f"{100 * self.max_pruning_ca_drop:.1f}. The network was fine-tuned only."
            )
        return {
            "summary": summary,
            "pruned_channels": count,
            "ranked_channels": len(self.pruned),
            "held_out_ca": [round(value, 6) for value in self.held_out_ca.tolist()],
            "pruned": self.pruned.nonzero().flatten().tolist(),
        }

    def shortfall(self) -> str | None:
        """``Nothing was pruned`` if the first features already cost too much."""
        return NOTHING_PRUNED if len(self.held_out_ca) and not self.pruned.any() else None
