"""Files as people have them work, or are refused with a line whose advice works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fst_lightning.checkpoints import (
    Checkpoint,
    CheckpointError,
    KeyMap,
    load_into,
    read_checkpoint,
    write_state,
)
from tests.checkpoints.found_files import FOUND, Found

pytestmark = pytest.mark.filterwarnings("ignore")


def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = net.eval()(x)
    return found


def test_there_are_enough() -> None:
    assert len(FOUND) >= 60
    assert sum(found.says is not None for found in FOUND.values()) < len(FOUND) / 3


@pytest.mark.parametrize("name", FOUND)
def test_a_file_as_people_have_it(name: str, tmp_path: Path) -> None:
    found = FOUND[name]
    source = found.source()
    path = tmp_path / name
    around = found.write(path, source)
    module = source if around is None else around
    if found.says is None:
        check(found, source, module, path, found.target(), None, {})
        return
    net = found.target()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_into(net, read_checkpoint(path))
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert found.says in said, said
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    follow(found, source, module, path, said)


def follow(found: Found, source: nn.Module, module: nn.Module, path: Path, said: str) -> None:
    """Do what the line says."""
    net, key, given = found.target(), None, {}
    if match := re.search(r"`checkpoint_key=(.*?)`", said):
        key = match[1]
    elif match := re.search(r"data\.mean=\[(.*?)\] data\.std=\[(.*?)\]", said):
        mean, std = (tuple(map(float, values.split(","))) for values in match.groups())
        given = {"mean": mean, "std": std}
    elif "model._target_=" in said:
        assert found.own is not None
        net = found.own()
    elif "remove_parametrizations" in said:
        for layer in module.modules():
            if hasattr(layer, "parametrizations"):
                torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
        torch.save(module.state_dict(), path)
    elif "torch.from_numpy" in said:
        arrays = torch.load(path, weights_only=False)
        torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, path)
    else:
        assert "torch.save(model.state_dict(), ...)" in said
        torch.save(source.state_dict(), path)
        module = source
    check(found, source, module, path, net, key, given)


def check(
    found: Found,
    source: nn.Module,
    module: nn.Module,
    path: Path,
    net: nn.Module,
    key: str | None,
    given: dict[str, Any],
) -> None:
    """The network gives the logits of the file's, and goes back under the file's names."""
    checkpoint = read_checkpoint(path, key)
    key_map = load_into(net, checkpoint, **given)
    x = images()
    seen = x
    if given:
        mean, std = (torch.tensor(given[k]).view(3, 1, 1) for k in ("mean", "std"))
        seen = (x - mean) / std
    close(logits(net, seen), logits(module, x), 1e-2 if not found.exact else 1e-4)
    torch.manual_seed(5)
    with torch.no_grad():  # as if it were tuned
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    goes_back(checkpoint, key_map, net, path.with_name("purified.safetensors"))
    if key is None and module is not source:
        write_state(path.with_name("b.safetensors"), net.state_dict(), key_map)
        state = read_checkpoint(path.with_name("b.safetensors")).state_dict
        module.load_state_dict(state, strict=True)
        close(logits(module, x), logits(net, seen), 1e-4)


def goes_back(checkpoint: Checkpoint, key_map: KeyMap, net: nn.Module, path: Path) -> None:
    write_state(path, net.state_dict(), key_map)
    purified = read_checkpoint(path)
    assert set(purified.tensors) == set(checkpoint.tensors) - set(key_map.outside)
    for name, tensor in purified.tensors.items():
        counter = name.endswith("num_batches_tracked")
        assert counter or tensor.shape == checkpoint.tensors[name].shape, name


def close(one: Tensor, other: Tensor, bound: float) -> None:
    assert one.std() > 1e-4
    assert (one - other).abs().max() <= bound * max(1.0, float(other.abs().max()))
