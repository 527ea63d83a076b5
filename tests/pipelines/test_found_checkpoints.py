"""Checkpoints of other people's programs, from the file to ``purified.safetensors``."""

import functools
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import nn
from torch.nn.utils import prune

from fst_lightning.checkpoints import read_checkpoint
from fst_lightning.models import small_resnet
from fst_lightning.pipelines import run_pipeline
from tests.pipelines.conftest import Start

MODEL = ("model=small_resnet", "model.width=4")


def network(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return small_resnet(3, width=4)


def test_the_hydra_templates_own_file(start: Start, tmp_path: Path) -> None:
    """It holds the network and a partial of the optimizer in its hyperparameters."""
    net = network()
    path = tmp_path / "last.ckpt"
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    content = {
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "hyper_parameters": {
            "net": net,
            "optimizer": functools.partial(torch.optim.Adam, lr=0.001),
            "output": Path("/logs"),
        },
    }
    torch.save(content, path)
    run = start(f"checkpoint={path}", *MODEL)
    run_pipeline(run)
    purified = load_file(run.folder / "purified.safetensors")
    assert purified.keys() == state.keys()


def test_one_of_several_networks(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nets = {name: network(seed) for seed, name in enumerate(("model", "model_ema"))}
    path = tmp_path / "a.pt"
    torch.save({name: net.state_dict() for name, net in nets.items()}, path)
    for key, name in ((None, "model"), ("model_ema", "model_ema")):
        more = () if key is None else (f"checkpoint_key={key}",)
        run = start(f"checkpoint={path}", *MODEL, "defense=none", *more)
        run_pipeline(run)
        told = "further networks: `model_ema`" in capsys.readouterr().out
        assert told is (key is None)
        purified = load_file(run.folder / "purified.safetensors")
        assert torch.equal(purified["fc.weight"], nets[name].state_dict()["fc.weight"])


@pytest.mark.parametrize("task", ["purify", "detect"])
def test_a_key_needs_a_file(start: Start, task: str) -> None:
    with pytest.raises(ValueError, match="Expected `checkpoint=` beside `checkpoint_key=model`"):
        run_pipeline(start("checkpoint_key=model", task=task))


def test_a_pruned_file_gets_its_parts_back(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = network()
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    for layer in layers:
        prune.l1_unstructured(layer, "weight", amount=0.2)  # type: ignore[no-untyped-call]
    path = tmp_path / "a.pt"
    torch.save(net.state_dict(), path)
    run = start(f"checkpoint={path}", *MODEL)
    run_pipeline(run)
    assert f"folds {len(layers)} weights" in capsys.readouterr().out
    net.load_state_dict(load_file(run.folder / "purified.safetensors"), strict=True)


def test_a_normalization_in_the_file_must_be_the_datas(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    state = {f"1.{name}": value for name, value in network().state_dict().items()}
    torch.save({**state, "0.mean": torch.full((3, 1, 1), 0.5), "0.std": torch.ones(3)}, path)
    lines = (f"checkpoint={path}", *MODEL, "defense=none")
    with pytest.raises(ValueError, match="Normalize the data as the file does") as caught:
        run_pipeline(start(*lines))
    advice = str(caught.value).rpartition(": ")[2].rstrip(".").split()
    assert advice == ["data.mean=[0.5,0.5,0.5]", "data.std=[1,1,1]"]
    run = start(*lines, *advice)
    run_pipeline(run)
    assert load_file(run.folder / "purified.safetensors").keys() == torch.load(path).keys()


def test_a_folder_of_timms_says_what_it_is(start: Start, tmp_path: Path) -> None:
    net = timm.create_model("test_resnet", num_classes=3)
    net.pretrained_cfg["input_size"] = (3, 32, 32)
    save_for_hf(net, tmp_path / "folder", safe_serialization=True)
    run = start(f"checkpoint={tmp_path / 'folder'}")
    results = run_pipeline(run)
    assert results["model"]["name"] == "timm"
    assert results["model"]["arguments"]["name"] == "test_resnet"
    card = read_checkpoint(run.folder / "purified.safetensors").card
    assert card is not None
    assert (card.image_size, card.mean) == (32, net.pretrained_cfg["mean"])
    net.load_state_dict(load_file(run.folder / "purified.safetensors"), strict=True)


def test_a_folder_of_transformers_asks_for_a_class(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save(network().state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"architectures": ["ResNetForX"]}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"transformers network `ResNetForX`.*model\._target_="):
        run_pipeline(start(f"checkpoint={folder}"))
    run_pipeline(start(f"checkpoint={folder}", *MODEL, "defense=none"))


def test_classes_in_another_order_are_told(start: Start, tmp_path: Path) -> None:
    run = start("defense=none")
    results = run_pipeline(run)
    path = Path(results["checkpoints"]["backdoored"])
    card = read_checkpoint(path).card
    assert card is not None
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save(read_checkpoint(path).state_dict, folder / "pytorch_model.bin")
    labels = {str(index): name for index, name in enumerate(reversed(card.classes))}
    (folder / "config.json").write_text(json.dumps({"id2label": labels}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"data\.classes=\[" + ",".join(reversed(card.classes))):
        run_pipeline(start(f"checkpoint={folder}", *MODEL, "defense=none"))
