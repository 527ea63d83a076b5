from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from fst_lightning.checkpoints import (
    CARD_KEY,
    ModelCard,
    load_into,
    read_checkpoint,
    write_state,
)
from tests.checkpoints.samples import equal, make_card, make_net, save_with


def test_the_way_of_a_purified_network(tmp_path: Path) -> None:
    """Names come back as they came in; an independent reader finds them and the normalization."""
    state = make_net().state_dict()
    named = {
        f"module.{k}".replace("downsample", "shortcut").replace("fc.", "linear."): v
        for k, v in state.items()
    }
    net = make_net(seed=1)
    key_map = load_into(net, read_checkpoint(save_with(tmp_path / "a.pt", {"net": named})))
    path = tmp_path / "deep" / "purified.safetensors"
    write_state(path, net.state_dict(), key_map, make_card())
    assert equal(load_file(path), named)
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
    assert metadata["mean"] == "0.5, 0.25, 0.125"
    assert metadata["std"] == "0.25, 0.5, 1.0"
    assert sorted(f.name for f in path.parent.iterdir()) == ["purified.safetensors"]
    again = read_checkpoint(path)
    assert again.card == make_card()
    assert equal(again.tensors, named)


def test_shared_and_scattered_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"a": base, "b": base, "c": base.T, "d": base[1], "e": base[0, 0], "f": base[:, :0]}
    state["g"] = torch.nn.Parameter(base)
    path = tmp_path / "a.safetensors"
    write_state(path, state)
    assert equal(load_file(path), {k: v.detach() for k, v in state.items()})


def test_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_state(path, {"a": torch.zeros(2)})
    before = path.read_bytes()

    def fails(tensors: object, target: Path, metadata: object) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("fst_lightning.checkpoints.write.save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        write_state(path, {"a": torch.ones(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_odd_states(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="empty"):
        write_state(path, {})
    with pytest.raises(ValueError, match="`a` to be a dense tensor"):
        write_state(path, {"a": torch.eye(2).to_sparse()})
    with pytest.raises(ValueError, match="dense"):
        write_state(path, {"a": 3})  # type: ignore[dict-item]
    assert not path.exists()


def test_a_file_can_be_read_by_whoever_may_read_its_neighbors(tmp_path: Path) -> None:
    path, neighbor = tmp_path / "a.safetensors", tmp_path / "neighbor"
    write_state(path, make_net().state_dict())
    neighbor.write_text("")
    assert path.stat().st_mode == neighbor.stat().st_mode


def test_equal_networks_are_equal_files(tmp_path: Path) -> None:
    """The metadata has a fixed order; safetensors' own readers read it."""
    path = tmp_path / "a.safetensors"
    contents = set()
    for _ in range(12):
        write_state(path, make_net().state_dict(), card=make_card())
        contents.add(path.read_bytes())
    assert len(contents) == 1
    with safe_open(path, "pt") as file:
        assert ModelCard.from_json(file.metadata()[CARD_KEY]) == make_card()
    for name, value in make_net().state_dict().items():
        assert torch.equal(load_file(path)[name], value)


@pytest.mark.parametrize("length", range(1, 9))
def test_equal_networks_are_equal_files_with_any_padding(tmp_path: Path, length: int) -> None:
    """The header is filled up to 8 bytes; there may be nothing to fill."""
    path = tmp_path / "a.safetensors"
    contents = set()
    for _ in range(6):
        write_state(path, {"x" * length: torch.ones(1)}, card=make_card())
        contents.add(path.read_bytes())
    assert len(contents) == 1
    assert load_file(path)["x" * length].item() == 1


def test_errors_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk has the system's number; anything else is told as the library does."""
    said = "Error while serializing: I/O error: No space left on device (os error 28)"

    def fails(*_: object, **__: object) -> None:
        raise SafetensorError(said)

    monkeypatch.setattr("fst_lightning.checkpoints.write.save_file", fails)
    with pytest.raises(OSError, match="No space left") as caught:
        write_state(tmp_path / "a", {"a": torch.ones(1)})
    assert (caught.value.errno, caught.value.filename) == (28, str(tmp_path / "a"))
    said = "another error"
    with pytest.raises(SafetensorError, match="another error"):
        write_state(tmp_path / "a", {"a": torch.ones(1)})
    assert not list(tmp_path.iterdir())
