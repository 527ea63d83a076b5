"""Fine-tuning (FT): train the whole network on for a while, on clean images.

The baseline of Min et al., NeurIPS 2023, arXiv 2310.01875; it fails at low poisoning rates.
"""

from __future__ import annotations

from typing import ClassVar

from fst_lightning.defenses.common.head_defense import HeadDefense


class FineTuning(HeadDefense):
    r"""Minimise :math:`\mathrm{CE}(f(x), y)` over all parameters, from the weights that came in.

    Args:
        project_norm: keep the norm of the head's weight. The public script of the paper does so in
            every mode; the paper itself for FST only, which is the default here.
        head: dotted name of the linear head; None finds it.
    """

    needs_features: ClassVar[bool] = False

    def __init__(self, project_norm: bool = False, head: str | None = None) -> None:
        super().__init__(reinit="none", project_norm=project_norm, head=head)
