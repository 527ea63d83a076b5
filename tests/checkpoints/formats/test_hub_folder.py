"""Folders of the Hugging Face Hub: text chooses among this project's networks, no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file
from timm.models import save_for_hf

from fst_lightning.checkpoints import CheckpointError, read_checkpoint
from fst_lightning.checkpoints.formats import hub_folder
from tests.checkpoints.samples import make_net


def folder(path: Path, config: Any = None, name: str = "model.safetensors") -> Path:
    path.mkdir(exist_ok=True)
    save_file(make_net().state_dict(), path / name)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (path / "config.json").write_text(text, encoding="utf-8")
    return path


def timm_config(**more: Any) -> dict[str, Any]:
    training = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.25] * 3}
    training |= {"classifier": "fc"}
    return {
        "architecture": "resnet18",
        "num_classes": 3,
        "pretrained_cfg": training,
        "label_names": ["cat", "dog", "eel"],
        **more,
    }


def test_timm_itself_writes_it(tmp_path: Path) -> None:
    net = timm.create_model("test_resnet", num_classes=3)
    for safe in (False, True):
        save_for_hf(net, tmp_path / str(safe), safe_serialization=safe)
        found = read_checkpoint(tmp_path / str(safe))
        assert found.card is not None
        assert found.card.model == {"name": "timm", "arguments": {"name": "test_resnet"}}
        assert found.card.num_classes == 3
        assert found.card.mean == net.pretrained_cfg["mean"]
        assert found.card.image_size == net.pretrained_cfg["input_size"][-1]
        assert found.path.parent == tmp_path / str(safe)


def test_what_a_config_says(tmp_path: Path) -> None:
    found = read_checkpoint(folder(tmp_path / "a", timm_config()))
    assert found.card is not None
    assert found.card.classes == ("cat", "dog", "eel")
    assert (found.card.image_size, found.card.head) == (64, "fc")
    assert found.extra["network"] == "the timm network `resnet18`"


def test_further_arguments_are_no_choice(tmp_path: Path) -> None:
    """A network with other arguments is another network: nothing builds it by its name alone."""
    for further in ({"img_size": 32}, {"global_pool": "max"}, {"in_chans": 1}):
        found = read_checkpoint(folder(tmp_path / "a", timm_config(model_args=further)))
        assert found.card is None
        assert f"with `{next(iter(further))}`" in str(found.extra["network"])
    usual = {"num_classes": 3, "in_chans": 3, "global_pool": "avg"}
    assert read_checkpoint(folder(tmp_path / "a", timm_config(model_args=usual))).card is not None


def test_transformers(tmp_path: Path) -> None:
    config = {"architectures": ["ResNetForImageClassification"], "id2label": {"1": "b", "0": "a"}}
    found = read_checkpoint(folder(tmp_path / "a", config))
    assert found.card is None
    assert found.extra["labels"] == ("a", "b")
    assert "ResNetForImageClassification" in str(found.extra["network"])
    config["id2label"] = {"0": "a", "7": "b"}
    assert "labels" not in read_checkpoint(folder(tmp_path / "a", config)).extra


def test_weights_alone(tmp_path: Path) -> None:
    for config in (None, {}, {"architecture": 3, "architectures": [3], "id2label": 3}):
        found = read_checkpoint(folder(tmp_path / "a", config))
        assert found.card is None
        assert found.extra == {}


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ("{", "no JSON object"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "no JSON object"),
        (" " * 2_000_000, "limit"),
        (timm_config(architecture="\x1b[2J"), "timm does not write"),
        (timm_config(num_classes=10**9), "timm does not write"),
        (timm_config(num_classes="3"), "timm does not write"),
        (timm_config(pretrained_cfg={}), "timm does not write"),
        (timm_config(pretrained_cfg=[1]), "timm does not write"),
        (timm_config(label_names=["a", 2, None]), "timm does not write"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_damaged_configs(tmp_path: Path, config: Any, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(folder(tmp_path / "a", config))
    assert str(caught.value).isprintable()


def test_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a folder that holds model\.safetensors"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="several files"):
        read_checkpoint(tmp_path)


def test_where_the_numbers_of_a_config_lie(tmp_path: Path) -> None:
    """The size is the last number of `input_size`; numbers may differ from each other."""
    training = {"input_size": [3, 64, 96], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = timm_config(pretrained_cfg=training | {"classifier": ["head.fc", "head2"]})
    card = read_checkpoint(folder(tmp_path / "a", config)).card
    assert card is not None
    assert (card.image_size, card.head) == (96, "head.fc")
    assert (card.mean, card.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    without = read_checkpoint(folder(tmp_path / "a", timm_config(pretrained_cfg=training))).card
    assert without is not None
    assert without.head == "head"


def test_names_of_classes_that_do_not_fit_are_numbers(tmp_path: Path) -> None:
    for names in (["cat", "dog"], None, "abc", {"0": "a", "1": "b", "2": "c"}):
        found = read_checkpoint(folder(tmp_path / "a", timm_config(label_names=names)))
        assert found.card is not None
        assert found.card.classes == ("0", "1", "2")
        assert "labels" not in found.extra


def test_arguments_of_another_kind_are_none(tmp_path: Path) -> None:
    further: object
    for further in ([1], "x", None, {}):
        config = timm_config(model_args=further)
        assert read_checkpoint(folder(tmp_path / "a", config)).card is not None


def test_config_of_exactly_the_longest_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(timm_config())
    path = folder(tmp_path / "a", text)
    monkeypatch.setattr(hub_folder, "_JSON_LIMIT", len(text))
    assert read_checkpoint(path).card is not None
    monkeypatch.setattr(hub_folder, "_JSON_LIMIT", len(text) - 1)
    with pytest.raises(CheckpointError, match="are the limit"):
        read_checkpoint(path)


def test_how_many_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"id2label": {"0": "a", "1": "b"}}
    for most, known in ((2, True), (1, False)):
        monkeypatch.setattr(hub_folder, "_MOST_LABELS", most)
        assert ("labels" in read_checkpoint(folder(tmp_path / "a", config)).extra) == known
