"""The defense effectiveness rating."""

from fst_lightning.validate import check_number


def defense_effectiveness_rating(
    ca_before: float, asr_before: float, ca_after: float, asr_after: float
) -> float:
    r"""Rate a defense by the success rate that it removes and the accuracy that it costs.

    .. math:: \mathrm{DER} =
        \frac{1}{2}[\max(0, \Delta\mathrm{ASR}) - \max(0, \Delta\mathrm{CA}) + 1]

    Each difference is before minus after. In [0, 1]; 0.5 is a defense that changes nothing, and
    gains in accuracy are not rewarded.

    Source: Zhu et al., "Enhancing fine-tuning based backdoor defense with sharpness-aware
    minimization", ICCV 2023 (arXiv:2304.11823), equation 7.

    Args:
        ca_before: Clean accuracy of the backdoored network, in [0, 1].
        asr_before: Attack success rate of the backdoored network, in [0, 1].
        ca_after: Clean accuracy of the purified network, in [0, 1].
        asr_after: Attack success rate of the purified network, in [0, 1].

    Raises:
        ValueError: If a rate is outside [0, 1] or not a number.

    Example:
        >>> round(defense_effectiveness_rating(0.9182, 0.9379, 0.9221, 0.0163), 4)
        0.9608
    """
    rates = {
        "ca_before": ca_before,
        "asr_before": asr_before,
        "ca_after": ca_after,
        "asr_after": asr_after,
    }
    for name, rate in rates.items():
        check_number(name, rate, high=1)
    return (max(0.0, asr_before - asr_after) - max(0.0, ca_before - ca_after) + 1.0) / 2.0
