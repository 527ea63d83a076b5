"""Every file in conf/ is found here: a new one is composed, built and run without a new test."""

import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from safetensors.torch import load_file

from fst_lightning import attacks, data, defenses
from fst_lightning.configuration import conf_folder, drop_unused, groups, groups_of
from fst_lightning.models import MODELS
from fst_lightning.modules.classifier import with_total_steps
from fst_lightning.pipelines import run_pipeline
from fst_lightning.pipelines.build.parts import (
    make_attack,
    make_defense,
    make_network,
    make_optimizer,
    make_trainer,
)
from fst_lightning.pipelines.build.parts import make_source as make_source_of
from fst_lightning.reports import read_results
from tests.runs import composed, make_run, skip_without_packages

CONF = conf_folder()
PARTS = ("attack", "defense", "data", "model")
OPTIMIZERS = ("tuning/optimizer", "training/optimizer")
ANY_NUMBER = ("detector", "robustness")
TASKS = ("train", "purify", "detect")
SUPPLIED = {"model": {"num_classes"}}
SMALL = {"resnet18": ["model.width=2"], "preact_resnet18": ["model.width=2"]}
SMALL["small_resnet"] = SMALL["airbench"] = ["model.width=2"]


def options(*names: str) -> list[tuple[str, str]]:
    return [(group, option) for group in names for option in groups()[group]]


def content(group: str, option: str) -> dict[str, Any]:
    return plain(OmegaConf.load(CONF / group / f"{option}.yaml"))


@pytest.fixture(autouse=True)
def forget_hydra() -> Iterator[None]:
    yield
    HydraConfig.instance().cfg = None


def plain(cfg: DictConfig | ListConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(cfg)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def contains(whole: Any, part: Any) -> bool:
    if not isinstance(part, dict):
        return bool(whole == part)
    return isinstance(whole, dict) and all(
        key in whole and contains(whole[key], value) for key, value in part.items()
    )


def together(task: str) -> list[dict[str, str]]:
    """Choices that name every option of a task: one of each group at a time."""
    own = {group: groups()[group] for group in groups_of(task) if group != "experiment"}
    most = max(map(len, own.values()))
    return [
        {group: names[number % len(names)] for group, names in own.items()}
        for number in range(most)
    ]


def test_every_group_is_in_a_list_of_defaults() -> None:
    assert {group for task in TASKS for group in groups_of(task)} == set(groups())


@pytest.mark.parametrize(
    ("task", "chosen"),
    [(task, chosen) for task in TASKS for chosen in together(task)],
    ids=lambda part: part if isinstance(part, str) else ",".join(part.values()),
)
def test_composes(task: str, chosen: dict[str, str]) -> None:
    def line(group: str) -> str:
        return f"{group}=[{chosen[group]}]" if group in ANY_NUMBER else f"{group}={chosen[group]}"

    cfg = composed(task, [line(group) for group in chosen])
    for group, option in chosen.items():
        if group in ANY_NUMBER:
            assert set(cfg[group]) == {option}
        else:
            assert cfg.hydra.runtime.choices[group] == option


@pytest.mark.parametrize("option", groups().get("experiment", []))
def test_an_experiment_composes_says_its_command_and_wins(option: str) -> None:
    text = (CONF / "experiment" / f"{option}.yaml").read_text(encoding="utf-8")
    command = f".py experiment={option}"
    task = "train" if f"train{command}" in text else "purify"
    assert f"python {task}{command}" in text
    cfg = composed(task, [f"experiment={option}"])
    wanted = content("experiment", option)
    for line in wanted.pop("defaults", []):
        (name, choice), *_ = line.items()
        assert cfg.hydra.runtime.choices[name.split("/")[-1]] == choice
    assert contains(plain(cfg), wanted)


@pytest.mark.parametrize(("group", "option"), options(*PARTS))
def test_has_the_target_first_and_then_every_argument(group: str, option: str) -> None:
    # A method may choose the optimizer that it was published with.
    keys = [key for key in content(group, option) if key != "defaults"]
    assert keys[0] == "_target_"
    target = content(group, option)["_target_"]
    parameters = [
        name
        for name, parameter in inspect.signature(get_object(target)).parameters.items()
        if name not in SUPPLIED.get(group, ()) and parameter.kind is not parameter.VAR_KEYWORD
        if parameter.kind is not parameter.VAR_POSITIONAL  # nn.Module's own, which it refuses
    ]
    if group == "model":  # Settings of the run, which build nothing.
        assert keys.pop() == "head"
    assert keys[1:] == parameters


@pytest.mark.parametrize(("group", "option"), options(*PARTS, *OPTIMIZERS))
def test_opens_with_a_comment(group: str, option: str) -> None:
    first = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")


@pytest.mark.parametrize("option", groups()["attack"])
def test_builds_the_attack(option: str, tmp_path: Path) -> None:
    run = make_run("purify", tmp_path, f"attack={option}", "defense=fst", store=tmp_path)
    assert type(make_attack(run)).__module__.startswith("fst_lightning.attacks.")


@pytest.mark.parametrize("option", groups()["defense"])
def test_builds_the_defense(option: str, tmp_path: Path) -> None:
    skip_without_packages(option)
    run = make_run("purify", tmp_path, "attack=badnets", f"defense={option}", store=tmp_path)
    assert type(make_defense(run)).__module__.startswith("fst_lightning.defenses.")


@pytest.mark.parametrize("option", groups()["data"])
def test_builds_the_source_without_loading_it(option: str, tmp_path: Path) -> None:
    needs = ["data.root=nowhere"] if "root" in content("data", option) else []
    run = make_run("train", tmp_path, f"data={option}", *needs, store=tmp_path)
    assert make_source_of(run)._data is None


@pytest.mark.parametrize("option", groups()["model"])
def test_builds_the_network(option: str, tmp_path: Path) -> None:
    if option == "timm":
        pytest.importorskip("timm")
    run = make_run("train", tmp_path, f"model={option}", *SMALL.get(option, []), store=tmp_path)
    with torch.device("meta"):
        net = make_network(run, 7, (3, 32, 32))
    assert any(getattr(module, "out_features", None) == 7 for module in net.modules())


@pytest.mark.parametrize("option", groups()["trainer"])
def test_builds_the_trainer(option: str, tmp_path: Path) -> None:
    if option == "gpu" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    run = make_run("train", tmp_path, f"trainer={option}", store=tmp_path)
    assert make_trainer(run, "train", 3, tmp_path).max_epochs == 3


@pytest.mark.parametrize("option", groups()["logger"])
def test_builds_the_logger(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if option in ("tensorboard", "wandb", "mlflow"):
        pytest.importorskip(option)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = make_run("train", tmp_path, f"logger={option}", store=tmp_path)
    trainer = make_trainer(run, "train", 1, tmp_path)
    assert len(trainer.loggers) == len(content("logger", option))
    for logger in trainer.loggers:
        assert option == "mlflow" or str(tmp_path) in str(logger.save_dir)
    assert option != "mlflow" or (tmp_path / "mlflow.db").is_file()


def exported(module: Any, kind: type) -> set[str]:
    found = {name: getattr(module, name) for name in module.__all__}
    return {
        f"{module.__name__}.{name}"
        for name, value in found.items()
        # Bases are exported as well: what can be chosen can be made.
        if inspect.isclass(value) and issubclass(value, kind) and not is_base(value, kind)
    }


def is_base(value: type, kind: type) -> bool:
    bases = (kind, defenses.HeadDefense, defenses.DatasetDefense)
    return value in bases or inspect.isabstract(value)


@pytest.mark.parametrize(
    ("group", "module", "kind"),
    [
        ("attack", attacks, attacks.Attack),
        ("defense", defenses, defenses.Defense),
        ("data", data, data.Source),
    ],
)
def test_every_class_has_a_file_and_every_file_a_class(group: str, module: Any, kind: type) -> None:
    targets = {content(group, option)["_target_"] for option in groups()[group]}
    assert targets == exported(module, kind)


def test_every_network_has_a_file_and_every_file_a_network() -> None:
    assert set(groups()["model"]) == set(MODELS)
    for name, builder in MODELS.items():
        assert get_object(content("model", name)["_target_"]) is builder


RECIPES = sorted(CONF.glob("recipe/*/*.yaml"))
GROUP_OF = {"data": "data", "defense": "defense", "optimizer": "tuning/optimizer"}


def leaves(part: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in part.items():
        inner = isinstance(value, dict)
        found |= leaves(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def choices_for(file: Path) -> list[str]:
    """`recipe/data_defense/a_b.yaml` is for `data=a defense=b`."""
    kinds = [GROUP_OF[kind] for kind in file.parent.name.split("_")]
    for names in itertools.product(*(groups()[kind] for kind in kinds)):
        if "_".join(names) == file.stem:
            chosen = [f"{kind}={name}" for kind, name in zip(kinds, names, strict=True)]
            # Digits, the default, have recipes of their own.
            return chosen if "data" in kinds else [*chosen, "data=cifar10"]
    raise AssertionError(f"{file} is for no choice of {kinds}")


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_recipe_is_merged_where_it_is_meant(file: Path) -> None:
    chosen, recipe = choices_for(file), leaves(plain(OmegaConf.load(file)))
    # What suits one optimizer does not reach another, which may not even have such a key.
    assert any(".optimizer." in key for key in recipe) == ("_optimizer" in file.parent.name)
    cfg = composed("purify", chosen)
    assert {key: OmegaConf.select(cfg, key) for key in recipe} == recipe


def test_a_recipe_loses_to_the_command_line() -> None:
    given = ["tuning.max_epochs=3", "tuning.optimizer.lr=0.625", "defense.share=0.5"]
    cfg = composed("purify", ["data=digits", "defense=i_bau", *given])
    assert [OmegaConf.select(cfg, line.split("=")[0]) for line in given] == [3, 0.625, 0.5]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_recipe_adds_no_key(file: Path) -> None:
    """A misspelled key would be ignored without a word."""
    options = dict(line.split("=") for line in choices_for(file))
    parts = {
        "training": content("training", "default"),
        "tuning": content("tuning", "default"),
        "defense": content("defense", options.get("defense", "fst")),
        "tuning.optimizer": content("tuning/optimizer", options.get("tuning/optimizer", "sgd")),
    }
    for key in leaves(plain(OmegaConf.load(file))):
        part, _, name = key.rpartition(".")
        assert name in parts[part]


@pytest.mark.parametrize(("group", "option"), options(*OPTIMIZERS))
def test_an_optimizer_brings_its_own_keys_alone(group: str, option: str) -> None:
    """Whatever the recipes of data and defense say of another one; NFT sets a momentum."""
    cfg = composed("purify", ["defense=nft", f"{group}={option}"])
    part = cfg[group.split("/")[0]]
    assert set(part.optimizer) == set(content(group, option))
    optimizer, schedule = make_optimizer(part)
    if option == "lookahead_sgd":
        optimizer = with_total_steps(optimizer, 4)
    made = optimizer([torch.nn.Parameter(torch.zeros(2))])
    assert type(made).__name__ == content(group, option)["_target_"].split(".")[-1]
    assert made.param_groups[0]["lr"] == part.optimizer.lr
    assert schedule is not None
    schedule(made)


@pytest.mark.parametrize("defense", ["i_bau", "sau"])
@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_a_defense_brings_its_published_optimizer(data: str, defense: str) -> None:
    chosen = [f"data={data}", f"defense={defense}"]
    assert composed("purify", chosen).tuning.optimizer._target_ == "torch.optim.Adam"
    cfg = composed("purify", [*chosen, "tuning/optimizer=sgd", "tuning.optimizer.lr=0.5"])
    assert plain(cfg.tuning.optimizer) == {**content("tuning/optimizer", "sgd"), "lr": 0.5}


def test_a_learning_rate_is_searched_where_the_optimizer_works() -> None:
    ranges = [
        composed("purify", [f"tuning/optimizer={option}"]).tuning.lr_range
        for option in ("sgd", "adam")
    ]
    assert ranges == [[0.001, 1.0], [1e-6, 0.01]]


@pytest.mark.parametrize("task", ["train", "detect"])
def test_a_recipe_for_several_tasks_leaves_nothing_in_one_that_does_not_tune(task: str) -> None:
    cfg = composed(task, ["data=fake"])
    assert cfg.training.max_epochs == 2
    drop_unused(cfg)
    assert not {"tuning", "defense"} & set(cfg)


def test_later_recipes_win_over_earlier_ones() -> None:
    cfg = composed("purify", ["data=cifar100", "defense=fst"])
    assert cfg.defense.alpha == 0.001
    assert composed("purify", ["data=cifar100", "defense=ft"]).defense.get("alpha") is None
    assert composed("purify", ["data=cifar100", "defense.alpha=0.3"]).defense.alpha == 0.3
    assert composed("purify", ["tuning.max_epochs=7"]).tuning.scheduler.T_max == 7


@pytest.mark.parametrize("option", groups()["training"])
def test_a_recipe_trains(option: str, tmp_path: Path) -> None:
    """Also one that leaves the number of its steps open."""
    model = "airbench" if option.startswith("airbench") else "small_resnet"
    chosen = [f"model={model}", "model.width=2", f"training={option}", "training.max_epochs=2"]
    run = make_run("train", tmp_path / "run", *chosen, store=tmp_path / "store")
    results = run_pipeline(run)
    assert 0 <= results["before"]["ca"] <= 1
    weights = load_file(results["checkpoints"]["backdoored"])
    assert all(bool(value.isfinite().all()) for value in weights.values())


MAY_FIND_NOTHING = {"ac", "anp", "bnp", "clp", "ep", "flare", "fp", "nc", "rnp"}
"""Defenses that leave a network as it is where they see nothing wrong with it."""


def small_budgets(group: str, option: str) -> list[str]:
    """What makes an attack or a defense quick, and poison enough of a few images."""
    lines = []
    for name, value in content(group, option).items():
        if isinstance(value, int) and name.endswith(("epochs", "rounds", "steps", "iterations")):
            lines.append(f"{group}.{name}={min(value, 2)}")
        if name in ("poison_ratio", "cover_ratio") and isinstance(value, float) and value < 0.05:
            lines.append(f"{group}.{name}=0.05")
    return lines


@pytest.mark.parametrize(
    ("attack", "defense"),
    [(attack, "fst") for attack in groups()["attack"]]
    + [("badnets", defense) for defense in groups()["defense"] if defense != "fst"],
)
def test_runs_end_to_end(
    attack: str, defense: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    skip_without_packages(defense)
    store = tmp_path_factory.getbasetemp() / "conf_store"  # badnets is trained once for all
    small = [*small_budgets("attack", attack), *small_budgets("defense", defense)]
    chosen = [f"attack={attack}", f"defense={defense}", *small]
    chosen.append("trainer.precision=bf16-mixed")  # what `auto` is on most machines
    run = make_run("purify", tmp_path / "run", *chosen, store=store)
    run_pipeline(run)
    results, error = read_results(tmp_path / "run" / "results.json")
    assert error is None
    assert results is not None
    assert (results["attack"]["name"], results["defense"]["name"]) == (attack, defense)
    assert (results["before"]["asr"] is None) == (attack == "none")
    before, after = (load_file(results["checkpoints"][n]) for n in ("backdoored", "purified"))
    unchanged = all(torch.equal(value, after[name]) for name, value in before.items())
    assert set(before) == set(after)
    if defense in MAY_FIND_NOTHING:
        return
    assert unchanged == (defense == "none")
