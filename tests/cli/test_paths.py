"""Files and folders with the names that people and programs give them."""

import shutil
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fst_lightning.cli.overrides import check_overrides
from fst_lightning.cli.paths import complete_paths, with_quoted_paths
from tests.cli.conftest import Command
from tests.cli.test_runs import results

NAMES = (
    *("epoch=9-step=100.ckpt", "model (1).pth", "my model.pth", "modèle.pth", "[best].pth"),
    *("run:3.pth", "100%.pth", "plus+1.pth", "a&b.pth", "x{1}.pth", "$v.pth", "~t.pth", "#1.pth"),
    *("0123.pth", "0123", "1e5", "nan", "it's.pth", "'half", "x=", "a\\'b", "end\\", "日本.pth"),
    *("a b,c=d (x)/run", "@x", "!x", "x;y", "<x>", "`x`", "[a,b", "a=[", "{", "key=a=b,c=(d)"),
)


def read(argument: str) -> object:
    """What Hydra makes of an argument."""
    return OverridesParser.create().parse_override(argument).value()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_read_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    for key in ("checkpoint", "data.root", "hydra.run.dir", "attack.image", "paths.store"):
        (argument,) = with_quoted_paths([f"{key}={name}"])
        assert read(argument) == name


@given(st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1))
def test_any_name_is_read_as_it_is_or_left_alone(name: str) -> None:
    argument = f"checkpoint=./a({name}"
    (quoted,) = with_quoted_paths([argument])
    assert read(quoted) == f"./a({name}"


def test_what_is_quoted_or_no_path_stays() -> None:
    lines = ["checkpoint='a b.pt'", 'data.root="x=1"', "seed=1=2", "checkpoint=null", "resume=true"]
    lines += ["-m", "checkpoint=", "checkpoint", "defense=ft,fst", "paths.store=${seed}", "--cfg"]
    assert with_quoted_paths(lines) == lines


def test_a_layer_may_be_called_by_its_number() -> None:
    lines = ["model.head=7", "defense.head='7'", "checkpoint_key=2", "model.head=fc", "seed=7"]
    quoted = with_quoted_paths(lines)
    assert quoted == ["model.head='7'", *lines[1:2], "checkpoint_key='2'", *lines[3:]]


def test_a_threshold_is_read_as_it_is() -> None:
    assert with_quoted_paths(["fail_on=p<0.05"]) == ["fail_on='p<0.05'"]


def test_a_sweep_over_paths_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (argument,) = with_quoted_paths(["-m", "checkpoint=~/a.pt,epoch=9.ckpt"])[1:]
    found = OverridesParser.create().parse_override(argument)
    assert found.is_sweep_override()
    values = [line.strip("'") for line in found.sweep_string_iterator()]
    assert values == [f"{tmp_path}/a.pt", "epoch=9.ckpt"]


def test_a_comma_is_of_the_name_if_there_is_such_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_quoted_paths(["checkpoint=a,b.pt"]) == ["checkpoint=a,b.pt"]
    (tmp_path / "a,b.pt").touch()
    assert with_quoted_paths(["checkpoint=a,b.pt"]) == ["checkpoint='a,b.pt'"]


def test_home_is_expanded_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STORE", "~/store")
    for argument in ("checkpoint=~/x.pt", "checkpoint='~/x.pt'", '++checkpoint="~/x.pt"'):
        (quoted,) = with_quoted_paths([argument])
        assert read(quoted) == f"{tmp_path}/x.pt"
    cfg = OmegaConf.create(
        {
            "paths": {"store": "${oc.env:STORE}", "data": "data"},
            "data": {"root": "~", "cache_folder": "${paths.store}/images", "name": "~"},
            "resume": False,
            "checkpoint": "???",
            "attack": {"image": None, "folder": "~nobody-of-this-name/x"},
        }
    )
    complete_paths(cfg)
    assert cfg.paths == {"store": f"{tmp_path}/store", "data": "data"}
    assert cfg.data.root == str(tmp_path)
    assert cfg.data.cache_folder == f"{tmp_path}/store/images"
    assert cfg.data.name == "~"
    assert cfg.attack.folder == "~nobody-of-this-name/x"


def test_paths_of_a_run(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "ho me"
    monkeypatch.setenv("HOME", str(home))
    trained = command("hydra.run.dir=~/a=b (1)", task="train")
    assert trained.code == 0, trained.err
    found = results(trained, "ho me/a=b (1)")
    # The store is named by its variable.
    name = "epoch=9-step=100.safetensors"
    shutil.copy(found["checkpoints"]["backdoored"], tmp_path / name)
    monkeypatch.setenv("FST_LIGHTNING_STORE", "~/mine")
    scored = command(f"checkpoint={name}", "defense=none", "hydra.run.dir=[run]", "attack=none")
    assert scored.code == 0, scored.err
    assert results(scored, "[run]")["before"]["ca"] == found["before"]["ca"]
    trained = command(task="train")
    assert (home / "mine" / "models").is_dir()
    assert not (tmp_path / "~").exists()


def test_home_in_the_folders_that_hydra_makes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RUNS", "~/it's runs")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        """# @package _global_
checkpoint: gone.pt
hydra:
  run: {dir: "${oc.env:RUNS}/run"}
  sweep: {dir: "~/sweep"}
""",
        encoding="utf-8",
    )
    mine = ("--config-dir=conf", "experiment=mine", "attack=none", "defense=none")
    one = command(*mine)
    assert f"Relative paths start at {tmp_path}." in one.err
    several = command("-m", *mine, "seed=0,1")
    assert (one.code, several.code) == (1, 1)
    folders = {Path(file).parent.as_posix() for file in several.written if "failure" in file}
    assert folders == {"home/it's runs/run", "home/sweep/0", "home/sweep/1"}
    assert not (tmp_path / "~").exists()


def test_a_word_of_yaml_is_named_with_the_quotes_that_work() -> None:
    message = check_overrides("purify", ["checkpoint=true"])
    assert message is not None
    assert """'checkpoint="true"'""" in message
    assert check_overrides("purify", ['checkpoint="true"']) is None


def test_relative_paths_start_where_the_command_was_typed(command: Command) -> None:
    trained = command(
        "hydra.run.dir=run", "hydra.job.chdir=true", "paths.store=my store", task="train"
    )
    assert trained.code == 0, trained.err
    assert any(name.startswith("my store/models/") for name in trained.written)
    assert not any(name.startswith("run/my store") for name in trained.written)
    shutil.copy(results(trained)["checkpoints"]["backdoored"], trained.folder / "rel.safetensors")
    scored = command(
        *("checkpoint=rel.safetensors", "defense=none", "attack=none", "hydra.run.dir=other"),
        "hydra.job.chdir=true",
    )
    assert scored.code == 0, scored.err


@pytest.mark.parametrize("override", ["checkpoint=gone.pt", "data=image_folder data.root=gone"])
def test_a_message_says_where_it_looked(override: str, command: Command) -> None:
    here = command(*override.split(), "hydra.run.dir=run")
    assert here.code == 1
    assert f"Relative paths start at {here.folder}." in here.err
    there = command(*override.split(), "hydra.run.dir=run", "hydra.job.chdir=true")
    assert f"{here.folder}/gone" in there.err
    assert f"Relative paths start at {here.folder}." in there.err
    absolute = [line.replace("gone", "/nowhere/gone") for line in override.split()]
    assert "Relative paths" not in command(*absolute, "hydra.run.dir=run").err
