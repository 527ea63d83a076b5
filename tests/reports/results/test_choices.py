from typing import Any

import pytest

from fst_lightning.reports.results.choices import choices
from tests.reports.example import example, score


def run(after: int, answers: tuple[int, int, int], **changes: Any) -> list[str]:
    """What is said of a run whose alpha was chosen; 918 of 1,000 images were right before."""
    found = {"ca_drop": 0.0035, "ca_drop_bounds": [-0.005, 0.012], "total": 287}
    search = {
        "chosen": 0.46416,
        "within_budget": True,
        "compared_with": "before",
        "compared_with_ca_drop": 0.0,
        "max_ca_drop": 0.02,
        "tried": {"0.464": found, "1": {**found, "ca_drop": 0.09}},
        **changes,
    }
    defense = {"name": "fst", "alpha": 0.46416, "findings": {"alpha_search": search}}
    results = example(defense=defense, after=score(after, 16, 800), answers=answers)
    return [text.replace("\N{MINUS SIGN}", "-") for text in choices(results)]


def test_a_choice_says_what_was_chosen_and_what_it_cost() -> None:
    chosen, tested = run(915, (10, 7, 1000))
    assert chosen == (
        "The run chose alpha 0.464 (defense.alpha=auto), the strongest of 2 tried that is not "
        "shown to cost more than 2.00 points of clean accuracy. On 287 clean images of the "
        "defender it costs 0.35 points (90 % interval -0.50 to 1.20)."
    )
    assert tested.startswith("On the 1,000 test images, clean accuracy changed by -0.30 points (95")
    assert tested.endswith(": within the 2.00 points that the search allowed.")


@pytest.mark.parametrize(
    ("after", "answers", "says"),
    [
        (893, (50, 25, 1000), "do not resolve the difference."),
        (818, (100, 0, 1000), "by tunings of half the epochs, so it can miss."),
    ],
)
def test_a_budget_that_was_not_kept_is_explained(
    after: int, answers: tuple[int, int, int], says: str
) -> None:
    assert run(after, answers)[1].endswith(says)


def test_a_choice_beyond_the_budget_says_so() -> None:
    baseline = {"within_budget": False, "compared_with": "0.01", "compared_with_ca_drop": 0.031}
    chosen, tested = run(915, (10, 7, 1000), **baseline)
    assert "None of them kept to the budget of 2.00 points of clean accuracy" in chosen
    assert "even 0.01, the least costly one, costs 3.10." in chosen
    assert "allowed" not in tested


def test_numbers_that_were_given_need_no_words() -> None:
    assert choices(example()) == []
    assert choices(example(task="train", after=None, defense=None)) == []
