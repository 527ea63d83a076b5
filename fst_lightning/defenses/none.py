"""No defense: score a network without changing it.

Example:
    ``python purify.py attack=blended defense=none``
"""

from __future__ import annotations

from fst_lightning.defenses.common.defense import Defense


class NoDefense(Defense):
    r"""Leave the network as it is.

    *How it works.* Nothing is tuned or pruned. The run reports the accuracy and the attack success
    rate of the given network. They are the baseline that every defense is compared with.

    .. math:: \theta' = \theta

    with the weights :math:`\theta` of the network before and :math:`\theta'` after the run.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized; not used.

    Needs:
        Nothing.

    Cost:
        One evaluation.

    When it fails:
        It removes nothing. Without a trigger, its figures do not show whether there is a backdoor.

    Note:
        Before and after are the same network, so that the defense effectiveness rating is 0.5.

    Example:
        >>> NoDefense().tunes
        False

    References:
        There is no paper: this is the baseline of all defenses.

    See Also:
        - :class:`~fst_lightning.defenses.FineTuning`: the simplest defense that tunes.
    """

    tunes = False
