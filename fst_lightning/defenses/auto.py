r"""Automatic purification (auto): tune on triggered images, with the old network as a teacher.

``python purify.py checkpoint=FILE model=resnet18 data=image_folder data.root=DIR defense=auto``
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.head_defense import Reinit
from fst_lightning.defenses.common.pixel_range import PixelRange
from fst_lightning.defenses.common.snapshot import call_with, restore, snapshot
from fst_lightning.defenses.fst import FST
from fst_lightning.defenses.triggers import (
    InvertedTriggers,
    PatchTriggers,
    RandomTriggers,
    TriggerSource,
    TriggerSources,
    UniversalTriggers,
    WarpTriggers,
    put_triggers,
    study_sources,
)
from fst_lightning.validate import check_number


class AutoPurification(FST):
    r"""The recommended purification of a network whose trigger is unknown.

    *How it works.* Triggers are recovered from the network, and others are drawn at random. The
    network is tuned on clean images that carry these triggers and keep their true labels, so that
    it learns to ignore triggers. The network from before the purification teaches it what the
    clean task needs. The parts cover each other's gaps.

    1. Before the tuning, the smallest patch
       (:class:`~fst_lightning.defenses.triggers.PatchTriggers`) and the smallest perturbation
       (:class:`~fst_lightning.defenses.triggers.UniversalTriggers`) of each class are recovered.
       If those of a class are much smaller than those of the others, a share of the images gets
       them while the network is tuned.
    2. Other shares, drawn independently, get random noise, waves and patches
       (:class:`~fst_lightning.defenses.triggers.RandomTriggers`) and random warps
       (:class:`~fst_lightning.defenses.triggers.WarpTriggers`), for backdoors that neither search
       finds. All images keep their labels.
    3. The network from before the purification is a teacher: on the same images *without* triggers
       it says what the clean task needs. It never sees a trigger, so it cannot hand the backdoor
       on.

    .. math:: (1 - \lambda)\, \mathrm{CE}(f(t(x)), y)
        + \lambda\, T^2\, \mathrm{KL}\big(p_T(f_0(x)) \,\|\, p_T(f(t(x)))\big)
        + \alpha \langle W, W_0 \rangle

    with the triggers :math:`t`, the old network :math:`f_0`, and the softmax :math:`p_T` at
    temperature :math:`T`.

    Args:
        alpha: Weight :math:`\alpha` of FST's penalty, 0 or more. On the networks that the recipe
            was chosen on, FST's shift cost clean accuracy and removed nothing that the triggers had
            not removed.
        reinit: How the head is drawn anew: ``orthogonal``, ``uniform`` or ``none``.
        distillation: :math:`\lambda`, the share of the teacher in the loss, in [0, 1].
        temperature: :math:`T`, greater than 0.
        random_share: Share of the images with random noise, waves and patches, in [0, 1].
        warp_share: Share of the images with a random warp, in [0, 1].
        patch_share: Share of the images with the patch of a suspected class, in [0, 1].
        universal_share: Share of the images with the perturbation of a suspected class, in [0, 1].
        inverted_share: Share of the images with the trigger of a recovered generator
            (:class:`~fst_lightning.defenses.triggers.InvertedTriggers`), in [0, 1].
        head: Dotted name of the linear head; None finds it.

    Shape:
        Images ``(N, C, H, W)``, normalized.

    Raises:
        ValueError: If an argument is out of its range.

    Needs:
        Clean images with true labels, and a linear head that takes one feature vector per image.

    Cost:
        A search for a patch and one for a perturbation per class, then the tuning. Each step takes
        one forward and backward pass, and one forward pass of the teacher.
        ``docs/auto.md`` lists measured seconds.

    When it fails:
        A backdoor stays if neither search finds it and no random trigger resembles it. The searches
        look for a class that stands out, so they find no all-to-all backdoor. With few images,
        teacher and labels say little.

    Note:
        Use a detector before and after, and FST's shift (``alpha=0.05, reinit="orthogonal"``) if
        the network is still suspicious.

    Example:
        >>> defense = AutoPurification(universal_share=0.0, patch_share=0.0)
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> defense.prepare(net, torch.Generator().manual_seed(0))
        >>> clean = CleanData(torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))
        >>> defense.study(net, clean, torch.Generator())
        >>> loss = defense.loss(net, clean.images, clean.labels)
        >>> loss.shape
        torch.Size([])

    References:
        - Min, Qin, Shen and Cheng, "Towards stable backdoor purification through feature shift
          tuning", NeurIPS 2023, arXiv 2310.01875.
        - Xu et al., "Towards reliable and efficient backdoor trigger inversion via decoupling
          benign features", ICLR 2024,
          https://openreview.net/forum?id=Tw9wemV6cb
        - Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", arXiv
          1503.02531.

    See Also:
        - :class:`~fst_lightning.defenses.FST`: the published defense.
        - :class:`~fst_lightning.defenses.BTIDBF`: the defense that the generator comes from.
        - :class:`~fst_lightning.defenses.NeuralAttentionDistillation`: a teacher that is tuned
          first.
    """

    recommended_lr: ClassVar[float] = 0.02
    keeps_budget: ClassVar[bool] = True

    original: Tensor
    """The network from before the purification, as one vector."""

    def __init__(
        self,
        alpha: float = 0.0,
        reinit: Reinit = "none",
        distillation: float = 0.7,
        temperature: float = 2.0,
        random_share: float = 0.5,
        warp_share: float = 0.3,
        patch_share: float = 0.2,
        universal_share: float = 0.2,
        inverted_share: float = 0.0,
        head: str | None = None,
    ) -> None:
        super().__init__(alpha=alpha, reinit=reinit, project_norm=reinit != "none", head=head)
        check_number("distillation", distillation, high=1)
        check_number("temperature", temperature, low_open=True)
        self.distillation = distillation
        self.temperature = temperature
        self.random_share = random_share
        self.warp_share = warp_share
        self.patch_share = patch_share
        self.universal_share = universal_share
        self.inverted_share = inverted_share
        sources: list[TriggerSource] = [
            RandomTriggers(random_share),
            WarpTriggers(warp_share),
            PatchTriggers(patch_share),
            UniversalTriggers(universal_share),
            InvertedTriggers(inverted_share, head=head),
        ]
        self.triggers = TriggerSources(source for source in sources if source.share)
        self.register_buffer("original", torch.empty(0))
        self.pixel_range = PixelRange()

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Keep the network as it is, then prepare the head as FST does."""
        self.original = snapshot(net)
        super().prepare(net, generator)

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Let the sources look at the network from before the purification."""
        self.pixel_range.fit(clean)
        before = copy.deepcopy(net)
        restore(before, self.original)
        seed = int(torch.randint(2**62, (), generator=generator))
        study_sources(self.triggers, before, clean, seed)

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The loss on images with triggers, with the old network's answers to those without."""
        logits = net(self.triggered(net, images, labels))
        loss = functional.cross_entropy(logits, labels)
        if self.distillation == 0:
            return loss
        with torch.no_grad():
            taught = call_with(net, self.original, images)
        scaled = (part.float() / self.temperature for part in (logits, taught))
        ours, theirs = (part.log_softmax(1) for part in scaled)
        divergence = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        share = self.distillation
        return (1 - share) * loss + share * self.temperature**2 * divergence

    def triggered(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Put triggers of all sources on images; normalized in, normalized out."""

        def classify(pixels: Tensor) -> Tensor:
            logits: Tensor = net(self.pixel_range.to_inputs(pixels).to(images.dtype))
            return logits

        pixels = self.pixel_range.to_pixels(images)
        changed = put_triggers(self.triggers, pixels, labels, classify)
        return self.pixel_range.to_inputs(changed).to(images.dtype)

    def findings(self) -> dict[str, Any]:
        """What the sources found in the network."""
        found = {
            type(source).__name__: source.findings()
            for source in self.triggers
            if source.findings()
        }
        return {"triggers": found} if found else {}
