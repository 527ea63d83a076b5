"""Measures how far a purification moved the head and the features; needs no trigger."""

from __future__ import annotations

import lightning as L
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fst_lightning.data import BackdoorDataModule
from fst_lightning.models import inputs_of, is_head
from fst_lightning.modules import ClassifierModule
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.score import spread, untouched

_MOST_IMAGES = 256


class Shift:
    r"""Records head and features of a network, and compares them with those of a later time.

    Args:
        run: The run.
        trainer: The Trainer, whose device and precision are used.
        module: The network and its inputs.
        data: The defender's images; up to 256 of them are used.
    """

    def __init__(
        self, run: Run, trainer: L.Trainer, module: ClassifierModule, data: BackdoorDataModule
    ) -> None:
        self.run, self.trainer, self.module, self.data = run, trainer, module, data
        self._before = self._look()

    def measure(self) -> dict[str, float | None]:
        r"""Cosines between the recorded and the present values; None for a network without a head.

        Returns:
            ``head_cosine``: :math:`\cos(W, W_0)` of the head's weights; ``feature_cosine``: the
            mean of :math:`\cos(\phi(x), \phi_0(x))` over clean images. Each in [-1, 1].
        """
        after, before = self._look(), self._before
        if after is None or before is None or after[0].shape != before[0].shape:
            return {"head_cosine": None, "feature_cosine": None}
        head = cosine_similarity(after[0].flatten(), before[0].flatten(), dim=0)
        features = None
        if after[1].shape == before[1].shape:
            features = float(cosine_similarity(after[1], before[1], dim=1).mean())
        return {"head_cosine": float(head), "feature_cosine": features}

    def _look(self) -> tuple[Tensor, Tensor] | None:
        net, rows = self.module.net, self.data.train_rows
        if self.run.head is None:
            return None
        head = net.get_submodule(self.run.head)
        if not is_head(head):
            return None
        with inputs_of(head) as seen, untouched(self.trainer, self.module):
            images = rows.images[spread(len(rows), _MOST_IMAGES)]
            net(self.module.inputs(images.to(self.trainer.strategy.root_device)))
        return head.weight.detach().double().cpu(), seen[-1].flatten(1).double().cpu()
