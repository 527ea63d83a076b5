"""Linear probing (LP): train the head only.

A baseline of Min et al., NeurIPS 2023, arXiv 2310.01875.
"""

from __future__ import annotations

from fst_lightning.defenses.common.head_defense import HeadDefense


class LinearProbing(HeadDefense):
    r"""Minimise :math:`\mathrm{CE}(f(x), y)` over the head, from the weights that came in.

    The features are frozen for good: BatchNorm stays in evaluation mode. (In the public script of
    the paper its running statistics drift, which is a fine-tuning of its own.)

    Args:
        project_norm: keep the norm of the head's weight, as the public script does.
        head: dotted name of the linear head; None finds it.
    """

    def __init__(self, project_norm: bool = False, head: str | None = None) -> None:
        super().__init__(reinit="none", project_norm=project_norm, train_features=False, head=head)
