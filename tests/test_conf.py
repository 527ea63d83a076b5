"""Every file in conf/ is found here: a new one is composed, built and run without a new test."""

import functools
import inspect
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
from fst_lightning.configuration import conf_folder, groups, groups_of
from fst_lightning.models import MODELS
from fst_lightning.pipelines import run_pipeline
from fst_lightning.pipelines.build.parts import (
    make_attack,
    make_defense,
    make_network,
    make_trainer,
)
from fst_lightning.pipelines.build.parts import make_source as make_source_of
from fst_lightning.reports import read_results
from tests.runs import composed, make_run, skip_without_packages

CONF = conf_folder()
PARTS = ("attack", "defense", "data", "model")
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


@functools.cache
def tasks(group: str) -> list[str]:
    return [task for task in ("train", "purify", "detect") if group in groups_of(task)]


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


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g, o in options(*groups()) if g != "experiment"]
)
def test_composes(group: str, option: str) -> None:
    assert tasks(group), "in no defaults list"
    for task in tasks(group):
        if group in ("detector", "robustness"):  # any number of them
            assert set(composed(task, [f"{group}=[{option}]"])[group]) == {option}
            continue
        cfg = composed(task, [f"{group}={option}"])
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
    keys = list(content(group, option))
    assert keys[0] == "_target_"
    target = content(group, option)["_target_"]
    parameters = [
        name
        for name, parameter in inspect.signature(get_object(target)).parameters.items()
        if name not in SUPPLIED.get(group, ()) and parameter.kind is not parameter.VAR_KEYWORD
        if parameter.kind is not parameter.VAR_POSITIONAL  # nn.Module's own, which it refuses
    ]
    if group == "model":  # Settings of the run, which build nothing.
        assert [keys.pop(), keys.pop()] == ["compile", "head"]
    assert keys[1:] == parameters


@pytest.mark.parametrize(("group", "option"), options(*PARTS))
def test_opens_with_a_comment(group: str, option: str) -> None:
    first = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")


@pytest.mark.parametrize("option", groups()["attack"])
def test_builds_the_attack(option: str, tmp_path: Path) -> None:
    run = make_run("train", tmp_path, f"attack={option}", store=tmp_path)
    assert type(make_attack(run)).__module__.startswith("fst_lightning.attacks.")


@pytest.mark.parametrize("option", groups()["defense"])
def test_builds_the_defense(option: str, tmp_path: Path) -> None:
    skip_without_packages(option)
    run = make_run("purify", tmp_path, f"defense={option}", store=tmp_path)
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


def recipes() -> list[Path]:
    return sorted(file for file in CONF.glob("*/*/*.yaml") if file.parts[-3] != "hydra")


@pytest.mark.parametrize(
    "file", recipes(), ids=lambda file: "-".join(file.with_suffix("").parts[-3:])
)
def test_a_recipe_is_merged_where_it_is_meant_and_loses_to_the_command_line(file: Path) -> None:
    """`tuning/data/NAME.yaml` is for `data=NAME`; `data_defense` names both."""
    group, chosen = file.parts[-3], choices_for(file)
    recipe = plain(OmegaConf.load(file))
    assert set(recipe) <= set(content(group, base(group, chosen)))
    assert contains(plain(composed("purify", chosen)[group]), recipe)
    scalars = [key for key, value in recipe.items() if not isinstance(value, dict)]
    cfg = composed("purify", [*chosen, *(f"{group}.{key}=0.625" for key in scalars)])
    assert all(cfg[group][key] == 0.625 for key in scalars)


def choices_for(file: Path) -> list[str]:
    known = groups()
    pairs = {
        f"{d}_{f}": [f"data={d}", f"defense={f}"] for d in known["data"] for f in known["defense"]
    }
    kind = file.parts[-2]
    if kind == "data_defense" or file.stem not in known[kind]:
        return pairs[file.stem]
    # Data come after the defense, and the embedded ones have a recipe of their own.
    return [f"{kind}={file.stem}", *(["data=cifar10"] if kind == "defense" else [])]


def base(group: str, chosen: list[str]) -> str:
    names = dict(line.split("=") for line in chosen)
    return names.get(group, "default")


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
