"""Feature shift tuning as one line in an existing project."""

from __future__ import annotations

from fst_lightning.callbacks.defense import DefenseCallback
from fst_lightning.defenses import FST, Reinit


class FSTCallback(DefenseCallback):
    """Purify the network of any LightningModule by feature shift tuning (arXiv 2310.01875).

    Fit the module on a few clean images with this callback in the Trainer. The arguments are those
    of :class:`~fst_lightning.defenses.FST`.

    Args:
        alpha: Weight of the penalty on the inner product of new and old head, 0 or more.
        reinit: ``orthogonal``, ``uniform`` (the published algorithm) or ``none``.
        project_norm: Whether to scale the head's weight to its original norm after each step.
        head: Dotted name of the linear head within the LightningModule; None finds it.
        seed: Seed of the new head; None takes ``torch.initial_seed()``.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> trainer = L.Trainer(
        ...     max_epochs=1, callbacks=[FSTCallback(alpha=0.2)], logger=False,
        ...     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ... )
        >>> trainer.callbacks[0].defense.alpha
        0.2
    """

    def __init__(
        self,
        alpha: float = 0.2,
        reinit: Reinit = "orthogonal",
        project_norm: bool = True,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(FST(alpha, reinit, project_norm, head), seed)
