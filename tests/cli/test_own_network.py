"""A class of the user's own on the command line: no YAML, no key of another network."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fst_lightning.cli.own_network import own_network
from tests.cli.conftest import Command, Outcome
from tests.runs import composed, tiny

CLASSES = '''
from torch import nn


class Net(nn.Sequential):
    """Takes the number of classes, and `width`, which the default network has, too."""

    def __init__(self, num_classes, width=5, kernels=(3, 3)):
        first = nn.Conv2d(3, width, kernels[0], stride=2, padding=1)
        second = nn.Conv2d(width, width, kernels[1], stride=2, padding=1)
        pool = nn.AdaptiveAvgPool2d(1)
        head = nn.Linear(width, num_classes)
        super().__init__(first, nn.ReLU(), second, nn.ReLU(), pool, nn.Flatten(), head)


class Fixed(Net):
    """Takes nothing."""

    def __init__(self):
        super().__init__(3)


class PassesOn(Net):
    """Takes any keyword, and passes it on to a class that does not."""

    def __init__(self, **keywords):
        def build(width=4):
            Net.__init__(self, 3, width)

        build(**keywords)


class Soft(Net):
    def forward(self, images):
        return super().forward(images).softmax(1)


class TooMany(Net):
    """Takes no number of classes, and has its own."""

    def __init__(self):
        super().__init__(7)


class Pair(Net):
    def forward(self, images):
        return super().forward(images), None


class Broken(Net):
    def __init__(self, num_classes):
        raise RuntimeError("no weights here")
'''


@pytest.fixture
def run(command: Command) -> Command:
    """Runs a command on tiny data, without the keys of the tiny network."""

    def start(*arguments: str, task: str = "purify") -> Outcome:
        small = tiny(task, [line for line in arguments if not line.startswith("-")])
        lines = [line for line in small if not line.startswith("model")]
        return command(*lines, "report.enabled=false", *arguments, task=task, small=False)

    return start


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of one test are not those of the next."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("nets", "broken", "package", "package.nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "package").mkdir()
    for file in ("nets.py", "package/nets.py"):
        (tmp_path / file).write_text(CLASSES)


def checkpoint(folder: Path, name: str, **arguments: Any) -> Path:
    """Weights of one of the classes, as a stranger saves them."""
    namespace: dict[str, Any] = {}
    exec(CLASSES, namespace)
    torch.manual_seed(0)
    path = folder / f"{name}.pth"
    torch.save(namespace[name](**arguments).state_dict(), path)
    return path


def results(outcome: Outcome, folder: str = "run") -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads((outcome.folder / folder / "results.json").read_text())
    return found


@pytest.mark.parametrize(
    ("target", "overrides", "arguments"),
    [
        ("nets.Net", [], {"num_classes": 3}),
        (
            "package.nets.Net",
            ["model=resnet18", "+model.width=7", "model.kernels=[1,3]"],
            {"num_classes": 3, "width": 7, "kernels": [1, 3]},
        ),
        ("nets.Fixed", [], {}),
        ("nets.PassesOn", ["+model.width=6"], {"width": 6}),
    ],
)
def test_a_class_is_named_without_yaml(
    run: Command, target: str, overrides: list[str], arguments: dict[str, Any]
) -> None:
    path = checkpoint(Path.cwd(), target.rpartition(".")[2], **arguments)
    lines = [f"checkpoint={path}", f"model._target_={target}", "attack=none", "defense=fst"]
    outcome = run(*lines, *overrides, "hydra.run.dir=run")
    found = results(outcome)
    assert found["model"]["name"] == target
    told = {name: value for name, value in arguments.items() if name != "num_classes"}
    assert found["model"]["arguments"] == told
    assert found["before"]["ca"] is not None
    purified = load_file(outcome.folder / "run/purified.safetensors")
    assert set(purified) == set(torch.load(path))
    again = [f"checkpoint={outcome.folder}/run/purified.safetensors", *lines[1:3], "defense=none"]
    second = results(run(*again, *overrides, "hydra.run.dir=again"), "again")
    assert second["before"]["ca"] == found["after"]["ca"]


def test_a_sweep_over_classes_trains_each_once(run: Command) -> None:
    lines = ["model._target_=nets.Net,nets.Fixed", "defense=ft", "attack=badnets"]
    outcome = run("-m", *lines, "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    table = (outcome.folder / "sweep/runs.csv").read_text()
    assert "nets.Net" in table
    assert "nets.Fixed" in table
    assert len(list((outcome.folder / "store/models").iterdir())) == 2


def test_training_sees_that_the_code_of_the_class_has_changed(run: Command) -> None:
    lines = ["model._target_=nets.Net", "attack=badnets"]
    first = results(run(*lines, "hydra.run.dir=run", task="train"))
    same = results(run(*lines, "hydra.run.dir=same", task="train"), "same")
    assert same["checkpoints"] == first["checkpoints"]
    del sys.modules["nets"]
    Path("nets.py").write_text(CLASSES.replace("nn.ReLU()", "nn.ELU()"))
    other = results(run(*lines, "hydra.run.dir=other", task="train"), "other")
    assert other["checkpoints"] != first["checkpoints"]


def test_a_file_of_ours_does_not_bring_its_class(run: Command) -> None:
    lines = ["model._target_=nets.Net", "attack=badnets", "hydra.run.dir=run"]
    path = results(run(*lines, task="train"))["checkpoints"]["backdoored"]
    outcome = run(f"checkpoint={path}", "data=fake", "paths.store=store")
    assert outcome.code == 1
    assert "Expected `model=` or `model._target_=package.module.Class`" in outcome.err
    assert "no class is taken from a file" in outcome.err


MISTAKES = {
    "nowhere.Net": ("there is no module nowhere", "PYTHONPATH"),
    "package.nowhere.Net": ("there is no module package.nowhere",),
    "nets.Nett": ("nets.py) has no Nett", "Did you mean Net?", "It has: Broken, Fixed, Net, Pair"),
    "nets.Net.deeper": ("'nets.Net.deeper'", "no attribute 'deeper'"),
    "Net": ("Write it as module.Class",),
    "broken.Net": ("importing it fails with ZeroDivisionError",),
    "nets.Broken": ("nets.Broken: no weights here",),
    "os.getcwd": ("Expected os.getcwd to make a Module, but it made a str",),
    "torch.nn.Linear": ("`model.in_features` to be set", "+model.in_features=..."),
}


@pytest.mark.parametrize(("target", "parts"), MISTAKES.items())
def test_a_class_that_cannot_be_made_is_one_clear_error(
    run: Command, target: str, parts: tuple[str, ...]
) -> None:
    Path("broken.py").write_text("1 / 0")
    path = checkpoint(Path.cwd(), "Fixed")
    outcome = run(f"checkpoint={path}", f"model._target_={target}", "attack=none")
    assert outcome.code == 1
    error = outcome.err.splitlines()[0]
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("+model.widths=7", ("`model.widths` to be an argument of nets.Net", "mean width?")),
        ("+model.depth=7", ("`model.depth`", "Its arguments: width, kernels.")),
    ],
)
def test_arguments_that_do_not_fit_are_told_with_those_that_do(
    run: Command, override: str, parts: tuple[str, ...]
) -> None:
    path = checkpoint(Path.cwd(), "Net", num_classes=3)
    outcome = run(f"checkpoint={path}", "model._target_=nets.Net", override, "attack=none")
    assert outcome.code == 1
    for part in parts:
        assert part in outcome.err


def test_only_the_command_line_gives_arguments() -> None:
    line = "model._target_=nets.Net"
    cfg, choices = own_network(composed("purify", [line]), {"model": "small_resnet"}, [line])
    assert set(cfg.model) == {"_target_", "head"}
    assert choices == {"model": "nets.Net"}
    cfg, choices = own_network(composed("purify"), {"model": "small_resnet"}, [])
    assert "width" in cfg.model
    assert choices == {"model": "small_resnet"}


def test_a_network_that_ends_in_a_softmax_is_purified_as_one_without(run: Command) -> None:
    path = checkpoint(Path.cwd(), "Soft", num_classes=3)
    lines = [f"checkpoint={path}", "attack=none", "defense=fst", "export_model=[torch_export]"]
    found = {}
    for name in ("Net", "Soft"):
        outcome = run(*lines, f"model._target_=nets.{name}", f"hydra.run.dir={name}")
        found[name] = results(outcome, name), load_file(f"{name}/purified.safetensors")
        assert ("The network ends in a softmax" in outcome.out) == (name == "Soft")
    (plain, expected), (soft, tensors) = found["Net"], found["Soft"]
    assert (soft["before"], soft["after"]) == (plain["before"], plain["after"])
    for key, tensor in expected.items():
        assert torch.allclose(tensors[key], tensor, atol=1e-5), key
    # The exported graph gives logits, as it says of itself.
    images = torch.rand(4, 3, 8, 8)
    graphs = [torch.export.load(f"{name}/purified.pt2").module() for name in ("Net", "Soft")]
    one, other = (graph(images).softmax(1) for graph in graphs)
    assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [("TooMany", "(8, 3) for 8 images and 3 classes, but got (8, 7)"), ("Pair", "but got tuple")],
)
def test_other_outputs_than_one_for_each_class_are_refused(
    run: Command, name: str, said: str
) -> None:
    arguments = {} if name == "TooMany" else {"num_classes": 3}
    path = checkpoint(Path.cwd(), name, **arguments)
    outcome = run(f"checkpoint={path}", f"model._target_=nets.{name}", "attack=none")
    assert outcome.code == 1
    assert f"Expected nets.{name} to return a tensor of shape " in outcome.err
    assert said in outcome.err
