"""Feature-extractor tuning (FE-tuning): a random head that is frozen, and features that follow.

A baseline of Min et al., NeurIPS 2023, arXiv 2310.01875.
"""

from __future__ import annotations

from fst_lightning.defenses.common.head_defense import HeadDefense, Reinit


class FeatureExtractorTuning(HeadDefense):
    r"""Re-initialise the head, freeze it, and minimise :math:`\mathrm{CE}(f(x), y)` over the rest.

    Args:
        reinit: ``uniform`` as in the paper, or ``orthogonal``.
        head: dotted name of the linear head; None finds it.
    """

    def __init__(self, reinit: Reinit = "uniform", head: str | None = None) -> None:
        super().__init__(reinit=reinit, project_norm=False, train_head=False, head=head)
