"""Fine-tuning with a new head (FT-init): FST without its penalty and its projection.

A baseline of Min et al., NeurIPS 2023, arXiv 2310.01875.
"""

from __future__ import annotations

from fst_lightning.defenses.common.head_defense import HeadDefense, Reinit


class FineTuningInit(HeadDefense):
    r"""Re-initialise the head and minimise :math:`\mathrm{CE}(f(x), y)` over all parameters.

    Args:
        reinit: ``uniform`` as in the paper, or ``orthogonal``.
        project_norm: keep the norm of the head's weight, as the public script does.
        head: dotted name of the linear head; None finds it.
    """

    def __init__(
        self, reinit: Reinit = "uniform", project_norm: bool = False, head: str | None = None
    ) -> None:
        super().__init__(reinit=reinit, project_norm=project_norm, head=head)
