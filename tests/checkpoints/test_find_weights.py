"""Which of several networks in a file is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fst_lightning.checkpoints import CheckpointError, load_into, read_checkpoint
from tests.checkpoints.samples import equal, make_net, save_with

ONE, TWO = make_net(seed=1).state_dict(), make_net(seed=2).state_dict()


def refused(path: Path, key: str | None, match: str) -> str:
    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(path, key)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_usual_name_goes_first_and_others_are_told(tmp_path: Path) -> None:
    value = {
        "ema": ONE,
        "epoch": 3,
        "model": TWO,
        "x": {"y": {"z": dict(ONE)}},
        "acc": torch.ones(1),
    }
    path = save_with(tmp_path / "a.pt", value)
    found = read_checkpoint(path)
    assert equal(found.tensors, TWO)
    assert found.others == ("ema", "x.y.z")
    for key in ("ema", "x.y.z"):
        assert equal(read_checkpoint(path, key).tensors, ONE)
    assert read_checkpoint(path, "ema").others == ("model", "x.y.z")


def test_one_network_under_any_name(tmp_path: Path) -> None:
    value = {"a": {"b": {"weights_of_mine": ONE}}, "acc": torch.ones(1), "list": [TWO]}
    assert equal(read_checkpoint(save_with(tmp_path / "a.pt", value)).tensors, ONE)


def test_several_networks_are_offered(tmp_path: Path) -> None:
    path = save_with(tmp_path / "a.pt", {"encoder": ONE, "decoder": TWO})
    text = refused(path, None, "several state_dicts")
    assert "`encoder`, `decoder`" in text
    assert "`checkpoint_key=encoder`" in text
    assert equal(read_checkpoint(path, "decoder").tensors, TWO)
    text = refused(path, "decode", "no network under `checkpoint_key=decode`")
    assert "`encoder`, `decoder`" in text


@pytest.mark.parametrize("safetensors", [False, True])
def test_the_start_of_names(tmp_path: Path, safetensors: bool) -> None:
    state = {f"{p}.m.{k}": v.clone() for p, s in (("a", ONE), ("b", TWO)) for k, v in s.items()}
    path = tmp_path / "file"
    if safetensors:
        save_file(state, path)
    else:
        save_with(path, {"model": state})
    for key, expected in (("a", ONE), ("b.m", TWO), *([] if safetensors else [("model.a", ONE)])):
        net = make_net()
        key_map = load_into(net, read_checkpoint(path, key))
        assert equal(net.state_dict(), expected)
        assert all(n.startswith(key.removeprefix("model.")) for n in key_map.restore(expected))
    assert "`a`, `b`" in refused(path, "c", "no network under")
    refused(path, "a.x", "no network under")


def test_a_key_cannot_control_the_terminal(tmp_path: Path) -> None:
    path = save_with(tmp_path / "a.pt", {"\x1b[2J": ONE, "b": TWO})
    assert refused(path, None, "several").isprintable()
    assert refused(path, "\x1b]0;x\x07", "no network").isprintable()


def test_dictionaries_that_hold_themselves(tmp_path: Path) -> None:
    value: dict[str, object] = {"epoch": 1}
    value["self"] = value
    refused(save_with(tmp_path / "a.pt", value), None, "holds no state_dict")
    value["deep"] = {"model": ONE, "up": value}
    assert equal(read_checkpoint(save_with(tmp_path / "a.pt", value)).tensors, ONE)


def test_files_without_a_network(tmp_path: Path) -> None:
    refused(save_with(tmp_path / "a.pt", torch.ones(2)), None, "holds a single tensor")
    refused(save_with(tmp_path / "a.pt", [torch.ones(2)]), None, "holds no dictionary of tensors")
    refused(save_with(tmp_path / "a.pt", {}), None, "its keys are none")
    text = refused(save_with(tmp_path / "a.pt", {"a": 1, "b": 2}), None, "its keys are `a`, `b`")
    assert "`b`, ..." not in text
    many = dict.fromkeys(map(str, range(100)))
    assert ", ..." in refused(save_with(tmp_path / "a.pt", many), None, "its keys are `0`")


def test_a_vector_is_no_network(tmp_path: Path) -> None:
    """Where a matrix lies elsewhere; by itself it may be a layer's bias."""
    value = {"acc": {"best": torch.ones(3)}, "net_of_mine": {"w": torch.ones(3, 2)}}
    found = read_checkpoint(save_with(tmp_path / "a.pt", value))
    assert list(found.tensors) == ["w"]
    assert found.others == ()
    alone = read_checkpoint(save_with(tmp_path / "a.pt", {"acc": {"best": torch.ones(3)}}))
    assert list(alone.tensors) == ["best"]
