"""Attacks and defenses by name."""

import inspect

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fst_lightning import (
    attacks,
    create_attack,
    create_defense,
    defenses,
    list_attacks,
    list_defenses,
)
from fst_lightning.configuration import groups
from tests.runs import option_config, skip_without_packages


def test_names_are_those_of_the_command_line() -> None:
    assert list_attacks() == groups()["attack"]
    assert set(list_defenses()) <= set(groups()["defense"])
    assert {"fst", "ft", "nc", "none"} <= set(list_defenses())


def test_every_class_of_the_package_has_a_name() -> None:
    made = {type(create_attack(name)) for name in list_attacks()}
    for name in attacks.__all__:
        kind = getattr(attacks, name)
        if inspect.isclass(kind) and issubclass(kind, attacks.Attack):
            assert kind in made or inspect.isabstract(kind), name


@pytest.mark.parametrize("name", list_defenses())
def test_a_defense_is_the_one_of_the_command_line(name: str) -> None:
    skip_without_packages(name)
    made = create_defense(name)
    assert isinstance(made, defenses.Defense)
    option = option_config("defense", name)
    config = {
        key: tuple(value) if OmegaConf.is_list(value) else value for key, value in option.items()
    }
    by_hydra = instantiate(option, _convert_="all")
    assert type(made) is type(by_hydra)
    for key in config.keys() - {"_target_"}:
        assert made._arguments[str(key)] == config[key]


def test_arguments_are_passed_on() -> None:
    assert repr(create_defense("fst", alpha=0.3)) == repr(defenses.FST(alpha=0.3))
    assert repr(create_attack("badnets", patch="checkerboard")) == repr(
        attacks.BadNets("checkerboard")
    )
    with pytest.raises(ValueError, match="`alpha` to be a number of 0 or more"):
        create_defense("fst", alpha=-1)


def test_what_there_is_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"`defense` to be one of .*fst.*'fst_'\. Did you mean fst\?"
    ):
        create_defense("fst_")
    with pytest.raises(
        ValueError, match=r"`attack` to be one of .*'blend'\. Did you mean blended\?"
    ):
        create_attack("blend")
    with pytest.raises(TypeError, match=r"alpha, reinit.*got `aplha`\. Did you mean alpha\?"):
        create_defense("fst", aplha=0.1)
