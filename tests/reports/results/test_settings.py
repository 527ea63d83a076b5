import pytest

from fst_lightning.reports.results.settings import override_settings, settings_of
from tests.reports.example import example, score


def test_names_the_choices_and_nothing_that_is_measured() -> None:
    assert settings_of(example()) == {
        "task": "purify",
        "attack": "blended",
        "attack.poison_ratio": 0.05,
        "attack.target_label": 0,
        "defense": "fst",
        "defense.alpha": 0.2,
        "data": "digits",
        "data.num_classes": 10,
        "model": "small_resnet",
    }


def test_seed_figures_and_places_make_no_difference() -> None:
    one = example(seed=0, overrides=["seed=0", "hydra.run.dir=a", "+paths.store=x"])
    two = example(seed=1, overrides=["seed=1"], before=score(800, 600), seconds={"purify": 9.0})
    assert settings_of(one) == settings_of(two)


def test_a_mapping_of_arguments_counts_as_arguments() -> None:
    found = settings_of(
        example(model={"name": "small_resnet", "arguments": {"width": 8, "name": "x"}})
    )
    assert found["model"] == "small_resnet"
    assert found["model.name"] == "x"
    assert found["model.width"] == 8
    assert "model.arguments" not in found


def test_overrides_say_what_the_blocks_do_not() -> None:
    found = settings_of(
        example(overrides=["attack=blended", "defense.alpha=0.20", "tuning.max_epochs=20"])
    )
    assert found["defense.alpha"] == 0.2
    assert found["tuning.max_epochs"] == 20


@pytest.mark.parametrize(
    "changes",
    [
        {"overrides": ["defense.alpha=auto"]},
        {"defense": {"name": "fst", "alpha": 0.2, "auto": ["alpha"]}},
    ],
)
def test_a_number_that_the_run_chose_reads_auto(changes: dict[str, object]) -> None:
    assert settings_of(example(**changes))["defense.alpha"] == "auto"


def test_reads_values() -> None:
    overrides = [
        "a=1",
        "b=1e-1",
        "c=true",
        "+d=x=y",
        "++e=null",
        "~f",
        "g=nan",
        "seed=3",
        "debug=true",
        "h=",
    ]
    assert override_settings(overrides) == {
        "a": 1,
        "b": 0.1,
        "c": True,
        "d": "x=y",
        "e": None,
        "f": "removed",
        "g": "nan",
        "h": "",
    }
