"""`checkpoint=`: our own files say what they are, everybody else's need `model=`."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fst_lightning.attacks import Attack
from fst_lightning.checkpoints import ModelCard, read_checkpoint, write_state
from fst_lightning.configuration import groups
from fst_lightning.models import small_resnet
from fst_lightning.pipelines import run_pipeline
from tests.checkpoints.samples import Calls
from tests.pipelines.conftest import Results, Start

Go = Callable[..., Results]
OTHER = ("attack=blended", "attack.poison_ratio=0.2", "attack.target_label=1", "model.width=3")
IMAGES = ("data.image_size=10", "data.mean=[0.4,0.5,0.6]", "data.std=[0.2,0.3,0.4]")


@pytest.fixture
def trained(go: Go) -> Results:
    return go(*OTHER, *IMAGES, task="train")


def test_our_own_file_says_what_it_is(start: Start, trained: Results) -> None:
    run = start(f"checkpoint={trained['checkpoints']['backdoored']}")
    results = run_pipeline(run)
    assert results["before"] == trained["before"]
    assert results["model"]["name"] == "small_resnet"
    assert results["model"]["arguments"] == {"width": 3, "blocks": 1}
    for key in ("name", "poison_ratio", "target_label", "blend_alpha"):
        assert results["attack"][key] == trained["attack"][key]
    assert results["data"]["num_poisoned"] is None
    assert results["seconds"]["train"] is None
    card = read_checkpoint(run.folder / "purified.safetensors").card
    assert card is not None
    assert (card.image_size, card.mean, card.std) == (10, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def test_the_command_line_wins_over_the_card(start: Start, trained: Results) -> None:
    path = trained["checkpoints"]["backdoored"]
    results = run_pipeline(start(f"checkpoint={path}", "attack=none", "data.image_size=10"))
    assert results["attack"]["name"] == "none"
    assert results["before"]["ca"] == trained["before"]["ca"]
    assert results["before"]["asr"] is None
    assert results["after"]["asr"] is None
    assert results["der"] is None
    results = run_pipeline(start(f"checkpoint={path}", "attack=badnets"))
    assert results["attack"]["name"] == "badnets"


def test_a_single_key_wins_over_the_card_and_leaves_the_rest_of_it(
    start: Start, trained: Results
) -> None:
    path = trained["checkpoints"]["backdoored"]
    results = run_pipeline(start(f"checkpoint={path}", "attack.target_label=2", "defense=none"))
    assert results["attack"]["name"] == "blended"
    assert results["attack"]["target_label"] == 2
    assert results["attack"]["poison_ratio"] == 0.2
    with pytest.raises(ValueError, match=r"`attack.patch_size` to fit attack=blended"):
        run_pipeline(start(f"checkpoint={path}", "attack.patch_size=2"))


def test_a_purified_file_can_be_purified_again(start: Start, trained: Results) -> None:
    run = start(f"checkpoint={trained['checkpoints']['backdoored']}")
    first = run_pipeline(run)
    second = run_pipeline(start(f"checkpoint={first['checkpoints']['purified']}", "defense=none"))
    assert second["before"] == first["after"]


def test_no_defense_scores_and_touches_nothing(start: Start, trained: Results) -> None:
    path = Path(trained["checkpoints"]["backdoored"])
    content = path.read_bytes()
    run = start(f"checkpoint={path}", "defense=none")
    results = run_pipeline(run)
    assert path.read_bytes() == content
    assert results["before"] == results["after"] == trained["before"]
    old, new = load_file(path), load_file(run.folder / "purified.safetensors")
    assert old.keys() == new.keys()
    assert all(torch.equal(value, new[name]) for name, value in old.items())


def foreign(folder: Path, num_classes: int = 3) -> tuple[Path, nn.Module]:
    """Somebody's file: a state_dict of DataParallel."""
    torch.manual_seed(3)
    net = small_resnet(num_classes, width=4)
    path = folder / "theirs.pt"
    torch.save({f"module.{name}": value for name, value in net.state_dict().items()}, path)
    return path, net


def test_a_state_dict_of_somebody_elses(start: Start, tmp_path: Path) -> None:
    path, net = foreign(tmp_path)
    content = path.read_bytes()
    run = start(f"checkpoint={path}", "model=small_resnet", "model.width=4", "attack=none")
    results = run_pipeline(run)
    assert path.read_bytes() == content
    assert results["before"]["ca"] is not None
    assert results["after"]["ca"] is not None
    assert (results["before"]["asr"], results["after"]["asr"]) == (None, None)
    assert results["attack"]["implanted"] is None
    purified = run.folder / "purified.safetensors"
    tensors = load_file(purified)
    assert set(tensors) == {f"module.{name}" for name in net.state_dict()}
    wrapped = nn.DataParallel(net)
    wrapped.load_state_dict(tensors)
    assert not torch.equal(tensors["module.fc.weight"], torch.load(path)["module.fc.weight"])
    with safe_open(purified, "pt") as file:
        metadata = file.metadata()
    assert len(metadata["mean"].split(",")) == len(metadata["std"].split(",")) == 3


def test_without_an_attack_all_of_the_defenders_images_are_used(
    start: Start, tmp_path: Path
) -> None:
    path, _ = foreign(tmp_path)
    lines = (f"checkpoint={path}", "model=small_resnet", "model.width=4")
    used = []
    for more in (("attack=none",), ("attack=badnets",)):
        run = start(*lines, *more, "tuning.clean_ratio=null", "data.num_train=200")
        used.append(run_pipeline(run)["data"]["num_clean_tuning"])
    assert used == [200, 4]


def test_a_foreign_file_without_attack_counts_as_unknown(start: Start, tmp_path: Path) -> None:
    path, _ = foreign(tmp_path)
    results = run_pipeline(start(f"checkpoint={path}", "model=small_resnet", "model.width=4"))
    assert results["attack"]["name"] == "none"


def test_a_foreign_file_needs_to_be_told_the_network(start: Start, tmp_path: Path) -> None:
    path, _ = foreign(tmp_path)
    with pytest.raises(ValueError, match=r"`model=`") as caught:
        run_pipeline(start(f"checkpoint={path}"))
    assert all(name in str(caught.value) for name in groups()["model"])


def test_another_number_of_classes_is_said(start: Start, tmp_path: Path) -> None:
    path, _ = foreign(tmp_path, num_classes=5)
    run = start(f"checkpoint={path}", "model=small_resnet", "model.width=4", "attack=none")
    with pytest.raises(ValueError, match="file has 5 classes, the data has 3"):
        run_pipeline(run)
    assert not (run.folder / "results.json").exists()


def test_a_lightning_checkpoint_of_ours(start: Start, go: Go, trained: Results) -> None:
    """The `.ckpt` of an interrupted training names the network below `net.`."""
    folder = Path(trained["checkpoints"]["backdoored"]).parent
    tensors = load_file(folder / "model.safetensors")
    card = read_checkpoint(folder / "model.safetensors").card
    assert card is not None
    path = folder.parent / "last.ckpt"
    state: dict[str, Any] = {
        "state_dict": {f"net.{name}": value for name, value in tensors.items()},
        "pytorch-lightning_version": "2.6.0",
        "fst_lightning": card.to_json(),
    }
    torch.save(state, path)
    run = start(f"checkpoint={path}")
    assert run_pipeline(run)["before"] == trained["before"]
    assert set(load_file(run.folder / "purified.safetensors")) == set(state["state_dict"])


def forged(trained: Results, folder: Path, **changes: Any) -> Path:
    """A file of ours with a card that somebody has changed."""
    source = Path(trained["checkpoints"]["backdoored"])
    checkpoint = read_checkpoint(source)
    assert checkpoint.card is not None
    values = json.loads(checkpoint.card.to_json())
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    path = folder / "forged.safetensors"
    write_state(path, checkpoint.state_dict, card=ModelCard.from_json(json.dumps(values)))
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": {"_target_": "os.system", "command": "touch harmed"}},
        {"attack": {"_target_": "builtins.exit", "_args_": [3]}},
        {"attack": {"_convert_": "all", "_recursive_": True, "_partial_": True}},
    ],
)
def test_no_target_is_taken_from_a_file(
    changes: dict[str, Any],
    start: Start,
    trained: Results,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    results = run_pipeline(start(f"checkpoint={forged(trained, tmp_path, **changes)}"))
    assert results["before"] == trained["before"]
    assert not (tmp_path / "harmed").exists()


def test_a_target_among_the_arguments_of_the_network_is_refused(
    start: Start, trained: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"width": 3, "_target_": "os.mkdir", "path": "harmed"}
    path = forged(trained, tmp_path, model={"arguments": arguments})
    with pytest.raises(ValueError, match="has no argument '_target_'"):
        run_pipeline(start(f"checkpoint={path}"))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "a${paths.store}", "${hydra:run.dir}"])
@pytest.mark.parametrize("where", ["attack", "model"])
def test_nothing_from_a_file_is_evaluated(
    where: str, text: str, start: Start, trained: Results, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"label_map": text}
    if where == "model":
        changes = {"arguments": {"width": text}}
    path = forged(trained, tmp_path, **{where: changes})
    with pytest.raises(ValueError, match=r"to be (plain|int)"):
        run_pipeline(start(f"checkpoint={path}"))


@pytest.mark.parametrize(
    ("attack", "key", "before"),
    [
        ("adaptive_patch", "opacities", [0.5, 0.2]),
        ("adaptive_patch", "test_patches", []),
        ("badnets", "patch", []),
        ("tact", "cover_labels", [2]),
        ("ctrl", "positions", []),
        ("blended", "image", []),
        ("blended", "label_map", []),
    ],
)
def test_nothing_in_a_list_from_a_file_is_evaluated(
    attack: str,
    key: str,
    before: list[object],
    start: Start,
    trained: Results,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CANARY", "0.25")
    for text in ("${oc.env:CANARY}", "${oc.decode:${oc.env:CANARY}}", "${seed}"):
        changes = {"name": attack, key: [*before, text]}
        run = start(f"checkpoint={forged(trained, tmp_path, attack=changes)}")
        with pytest.raises(ValueError, match=rf"`{key}(\[\d\])?` to be") as error:
            run_pipeline(run)
        assert "0.25" not in str(error.value)
        assert not any("0.25" in f.read_text() for f in run.folder.rglob("*") if f.is_file())


def test_lists_of_numbers_and_words_are_taken_from_a_file(
    start: Start, trained: Results, tmp_path: Path
) -> None:
    changes = {"name": "adaptive_patch", "opacities": [0.1, 0.2, 0.3, 0.4], "test_patches": [3]}
    path = forged(trained, tmp_path, attack=changes)
    results = run_pipeline(start(f"checkpoint={path}", "defense=none"))
    assert results["attack"]["opacities"] == [0.1, 0.2, 0.3, 0.4]
    assert results["attack"]["test_patches"] == [3]


def test_an_escaped_interpolation_would_be_evaluated() -> None:
    """So what a file says is made of words and numbers, and not escaped."""
    config = OmegaConf.create({"_target_": "builtins.dict", "a": "\\${oc.decode:'3'}"})
    assert config.a == "${oc.decode:'3'}"
    assert instantiate(config) == {"a": 3}


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"name": "ssba", "width": 300}, ("data.image_size=256",)),
        ({"name": "low_frequency", "surrogate_width": 250}, ("data.image_size=64",)),
        ({"name": "input_aware", "width": 256}, ("data.image_size=256",)),
        ({"name": "refool", "num_reflections": 2000}, ("data.image_size=256",)),
    ],
)
def test_an_attack_that_takes_much_memory_is_refused(
    changes: dict[str, Any],
    keys: tuple[str, ...],
    start: Start,
    trained: Results,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before it is prepared or fitted; what the command line asks for is done."""
    path = forged(trained, tmp_path, attack=changes)
    path.with_name("attack.safetensors").unlink(missing_ok=True)
    monkeypatch.setattr(Attack, "prepare", lambda *args: pytest.fail("prepared"))
    with pytest.raises(ValueError, match=rf"at most 2 GiB of memory, but {changes['name']} takes"):
        run_pipeline(start(f"checkpoint={path}", *keys))


def test_small_attacks_of_a_card_are_fitted(start: Start, trained: Results, tmp_path: Path) -> None:
    changes = {"name": "ssba", "width": 4, "fit_epochs": 1}
    path = forged(trained, tmp_path, attack=changes)
    results = run_pipeline(start(f"checkpoint={path}", "defense=none"))
    assert results["attack"]["name"] == "ssba"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 1024}, "`image_size` to be at most 512.*data.image_size=1024"),
        ({"attack": {"name": "ssba", "width": 1024}}, "`width` to be at most 384"),
        ({"attack": {"name": "lira", "width": 1600}}, "`width` to be at most 256"),
        ({"attack": {"name": "tact", "cover_labels": [1, "2"]}}, r"`cover_labels\[1\]` to be no"),
        ({"attack": {"name": "../../etc/passwd"}}, "but got '../../etc/passwd'"),
        ({"attack": {"name": "unheard_of"}}, "none"),
        ({"attack": {"name": "$(touch harmed)"}}, "but got"),
        ({"attack": {"name": "badnets; touch harmed"}}, "but got"),
        ({"attack": {"name": "\\x1b[2J"}}, "but got"),
        ({"attack": {"label_map": "all_to_one; touch harmed"}}, "to be plain words"),
        ({"attack": {"label_map": "../x"}}, "to be plain words"),
        ({"attack": {"image": "secret"}}, "`image` to be no text, but got 'secret'"),
        ({"attack": {"image": "/etc/passwd"}}, "`image` to be no text"),
        ({"attack": {"name": "refool", "folder": "images"}}, "`folder` to be no text"),
        ({"attack": {"name": "refool", "num_reflections": 10**9}}, "to be at most 2000"),
        ({"attack": {"name": "wanet", "grid_size": 10**6}}, "to be at most 400"),
        ({"attack": {"name": "blind", "loss_window": 1e12}}, "to be at most 10000"),
        ({"model": {"name": "unheard_of"}}, "small_resnet"),
        ({"model": {"name": "../attack/badnets"}}, "small_resnet"),
        ({"attack": {"poison_ratio": "abc"}}, "to be a number, but got 'abc'"),
        ({"model": {"arguments": {"width": 4.5}}}, "to be int, but got '4.5'"),
        ({"image_size": 4096}, "memory"),
        ({"head": "elsewhere"}, None),
    ],
)
def test_a_card_that_makes_no_sense_is_an_error_or_without_effect(
    changes: dict[str, Any], message: str | None, start: Start, trained: Results, tmp_path: Path
) -> None:
    run = start(
        f"checkpoint={forged(trained, tmp_path, **changes)}",
        *(("data.num_train=20000",) if message == "memory" else ()),
    )
    if message is None:
        assert run_pipeline(run)["model"]["head"] == "fc"
        return
    with pytest.raises(ValueError, match=message):
        run_pipeline(run)


def test_a_file_is_no_attack_on_memory(start: Start, trained: Results, tmp_path: Path) -> None:
    changes = {"model": {"name": "resnet18", "arguments": {"width": 4096}}}
    with pytest.raises(ValueError, match="parameters"):
        run_pipeline(start(f"checkpoint={forged(trained, tmp_path, **changes)}"))


@pytest.mark.parametrize(
    "model",
    [
        {"name": "small_resnet", "arguments": {"width": 4}},  # its weights are of width 3
        {"name": "torchvision", "arguments": {"name": "regnet_y_128gf"}},
        {"name": "torchvision", "arguments": {"name": "vit_h_14"}},
    ],
    ids=["small_resnet", "regnet", "vit"],
)
def test_a_network_larger_than_its_weights_is_not_built(
    model: dict[str, Any], start: Start, trained: Results, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"at most [0-9,]+ parameters, but the file describes"):
        run_pipeline(start(f"checkpoint={forged(trained, tmp_path, model=model)}"))


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"pattern": torch.full((1, 3, 10, 10), float("nan"))}, "NaN or infinite"),
        ({"pattern": torch.zeros(100_000, 1, 1, 1)}, r"`pattern` has shape \(100000, 1, 1, 1\)"),
        ({"pattern": torch.zeros(1, 3, 10, 10, dtype=torch.complex64)}, "complex64"),
        ({"pattern": torch.zeros(1, 3, 10, 10, dtype=torch.int32)}, "int32"),
        ({"pattern": torch.zeros(1, 3, 12, 12)}, r"`pattern` has shape \(1, 3, 12, 12\)"),
        ({"weight": torch.zeros(1)}, "it holds that of another attack"),
        ({"pattern": Calls(os.mkdir, "harmed")}, "could run code"),
    ],
)
def test_a_trigger_beside_a_checkpoint_is_trusted_no_more(
    saved: dict[str, Any],
    message: str,
    start: Start,
    trained: Results,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = forged(trained, tmp_path)
    torch.save(saved, path.with_name("attack.safetensors"))
    with pytest.raises(ValueError, match=message):
        run_pipeline(start(f"checkpoint={path}"))
    assert not (tmp_path / "harmed").exists()


def test_a_head_of_rank_0_is_an_error(start: Start, tmp_path: Path) -> None:
    net = small_resnet(3, width=4)
    torch.nn.init.zeros_(net.fc.weight)
    path = tmp_path / "zeros.pt"
    torch.save(net.state_dict(), path)
    run = start(f"checkpoint={path}", "model=small_resnet", "model.width=4", "attack=none")
    with pytest.raises(ValueError, match="all zeros; is this a trained network"):
        run_pipeline(run)
    assert not (run.folder / "purified.safetensors").exists()


def test_an_untrained_network_is_a_warning(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = small_resnet(3, width=4)
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.weight[0, 0] = 1e-3
    path = tmp_path / "untrained.pt"
    state: dict[str, Tensor] = net.state_dict()
    torch.save(state, path)
    lines = ("model=small_resnet", "model.width=4", "attack=none", "defense=none")
    run_pipeline(start(f"checkpoint={path}", *lines))
    said = " ".join(capsys.readouterr().out.split())
    assert "is at chance" in said
    assert "data.classes" in said
