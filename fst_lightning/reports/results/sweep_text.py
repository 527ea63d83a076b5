"""What a sweep found, in words: its warnings, its failures, and its means with deviations."""

from collections.abc import Callable, Iterable

from fst_lightning.reports.numbers import NOT_GIVEN, percent, rate_text, significant
from fst_lightning.reports.results.boards import setting_text
from fst_lightning.reports.results.build import RATES
from fst_lightning.reports.results.notes import THERE_FROM
from fst_lightning.reports.results.sweep import Failure, Group, Spread, SweepSummary


def sweep_notes(summary: SweepSummary) -> list[str]:
    """List what must be known before the means are believed."""
    found = []
    biased = any(
        run.implanted is False and (run.values["before.asr"] or 0) >= THERE_FROM
        for run in summary.runs
    )
    why = "ASR < 50 %, or hardly above its control" if biased else "ASR < 50 %"
    for name, groups in _by_network(summary).items():
        failed, runs = sum(g.not_implanted for g in groups), sum(g.n for g in groups)
        if failed:
            others = ", and DER averages the others" if failed < runs else ""
            found.append(
                f"{name}: the attack did not take ({why}) in {failed} of {runs} runs; "
                f"no defense is credited there{others}."
            )
    for group in summary.groups:
        for what, runs in group.shortfalls.items():
            found.append(
                f"{group_name(summary, group)}: no success in {runs} of {group.n} runs. {what}."
            )
        twice = sorted({seed for seed in group.seeds if group.seeds.count(seed) > 1})
        if twice:
            found.append(
                f"{group_name(summary, group)}: more than one run with seed "
                f"{', '.join(map(str, twice))}; the deviation is not one over seeds."
            )
    return found


def shared_lines(summary: SweepSummary) -> list[str]:
    """Say what the table leaves out, for it is the same in every run, or in every `fst`."""
    lines = []
    for owner, items in summary.shared.items():
        line = ", ".join(f"{name}={value}" for name, value in items)
        lines.append(f"{owner}: {line}" if owner else line)
    return lines


def group_name(summary: SweepSummary, group: Group) -> str:
    """Name a group by what tells it apart: `attack=badnets defense=fst`."""
    return _named(summary, group, summary.varying)


def _named(summary: SweepSummary, group: Group, names: Iterable[str]) -> str:
    return " ".join(f"{name}={setting_text(summary, group, name)}" for name in names)


def _by_network(summary: SweepSummary) -> dict[str, list[Group]]:
    """The groups that start from the same backdoored networks, by what tells those apart."""
    later = ("defense", "tuning")
    names = [name for name in summary.varying if name.partition(".")[0] not in later]
    networks: dict[str, list[Group]] = {}
    for group in summary.groups:
        networks.setdefault(_named(summary, group, names), []).append(group)
    return networks


def table_rows(
    summary: SweepSummary,
    rate: Callable[[Spread], str] | None = None,
    rating: Callable[[Spread], str] | None = None,
) -> tuple[list[str], list[list[str]]]:
    """Write the table for people: the headings, and a line per experiment.

    The first columns, as many as ``summary.varying``, are words, the others numbers.

    Args:
        summary: The sweep.
        rate: Writes a rate. The default writes percent with two decimals.
        rating: Writes the DER. The default writes four decimals.
    """
    rate = rate or (lambda spread: spread_text(spread, percent, " ± "))
    rating = rating or (lambda spread: spread_text(spread, four_decimals, " ± "))
    ratings = [f"{name.upper()} {when} %" for name in RATES for when in ("before", "after")]
    rows = []
    for group in summary.groups:
        values = group.values
        stage = "train" if group.settings.get("task") == "train" else "purify"
        rows.append(
            [
                *(setting_text(summary, group, name) for name in summary.varying),
                str(group.n),
                *(rate(values[f"{when}.{name}"]) for name in RATES for when in ("before", "after")),
                rating(values["der"]),
                spread_text(values[f"seconds.{stage}"], one_decimal, " ± "),
                spread_text(values[f"peak_memory_mb.{stage}"], whole, " ± "),
                spread_text(values["data.num_clean_tuning"], whole, " ± "),
            ]
        )
    costs = ["seconds", "peak MiB", "clean images"]
    return [*summary.varying, "n", *ratings, "DER", *costs], rows


def failure_line(failure: Failure) -> str:
    """Say in one line which run failed, why, and where to read more."""
    asked = " ".join(failure.overrides)
    words = [failure.job, f"({asked})" if asked else "", f"- {failure.line}"]
    return " ".join(filter(None, words)) + (f" (see {failure.log})" if failure.log else "")


def spread_text(spread: Spread, number: Callable[[float], str], sign: str = " +- ") -> str:
    """Write mean, sign and deviation; the mean alone where there is one run, "-" for nothing.

    Args:
        spread: what to write.
        number: how to write one number.
        sign: what stands between the two, spaces included.

    Example:
        >>> spread_text(Spread(0.5, 0.1, 2), percent)
        '50.00 +- 10.00'
    """
    if spread.mean is None:
        return NOT_GIVEN
    mean = number(spread.mean)
    return mean if spread.std is None else f"{mean}{sign}{number(spread.std)}"


def spread_digits(spread: Spread) -> str:
    """Write a mean rate with three significant digits, and its deviation with as many decimals.

    Example:
        >>> spread_digits(Spread(0.905, 0.007, 2)), spread_digits(Spread(1.0, None, 1))
        ('90.5 ± 0.7', '100')
    """
    mean = rate_text(spread.mean)
    return mean if spread.std is None else f"{mean} ± {_alike(mean, 100 * spread.std)}"


def rating_digits(spread: Spread) -> str:
    """Write a mean rating with three significant digits, and its deviation likewise.

    Example:
        >>> rating_digits(Spread(0.94631, 0.00211, 2))
        '0.946 ± 0.002'
    """
    mean = NOT_GIVEN if spread.mean is None else significant(spread.mean, 3)
    return mean if spread.std is None else f"{mean} ± {_alike(mean, spread.std)}"


def _alike(mean: str, std: float) -> str:
    """A number with the decimals of another one."""
    return f"{std:.{len(mean.partition('.')[2])}f}"


def four_decimals(value: float) -> str:
    """Write a rating."""
    return f"{value:.4f}"


def one_decimal(value: float) -> str:
    """Write seconds."""
    return f"{value:.1f}"


def whole(value: float) -> str:
    """Write what is counted, or too large for decimals."""
    return f"{value:.0f}"
