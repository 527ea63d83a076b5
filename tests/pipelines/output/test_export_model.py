"""The purified network in other formats gives the same logits, or there is no file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fst_lightning.checkpoints import ModelCard
from fst_lightning.models import MODELS
from fst_lightning.pipelines import run_pipeline
from fst_lightning.pipelines.output import export_model as module
from fst_lightning.pipelines.output.export_model import FORMATS, check_formats, export_model
from fst_lightning.reports import notes, read_results
from tests.pipelines.conftest import Start

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.5)


def asked(name: str) -> str:
    """The format, where what it needs is installed."""
    for package in module.PACKAGES[name]:
        pytest.importorskip(package)
    return name


def read(name: str, path: Path) -> Callable[[Tensor], np.ndarray[Any, Any]]:
    """Read a file as another program would."""
    if name == "torch_export":
        program = torch.export.load(path).module()
        return lambda images: program(images).detach().numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})[0]


def told(name: str, path: Path) -> dict[str, str]:
    """The metadata of a file."""
    if name == "torch_export":
        found = dict.fromkeys(("fst_lightning", "input", "output", "normalization"), "")
        torch.export.load(path, extra_files=found)
        return found
    import onnx

    return {item.key: item.value for item in onnx.load(path).metadata_props}


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_writes_what_gives_the_same_logits(start: Start, name: str) -> None:
    run = start("defense=ft", f"export_model=[{asked(name)}]", "model.width=4")
    results = run_pipeline(run)
    found = results["exported"][name]
    assert found["file"] == str(run.folder / FORMATS[name])
    assert found["max_difference"] < 1e-5
    path = Path(found["file"])
    assert found["bytes"] == path.stat().st_size

    card = ModelCard.from_json(told(name, path)["fst_lightning"])
    net = MODELS["small_resnet"](num_classes=3, width=4)
    net.load_state_dict(load_file(run.folder / "purified.safetensors"))
    net.eval()
    mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (card.mean, card.std))
    program = read(name, path)
    for size in (1, 2, 5):
        images = torch.rand(size, 3, 8, 8)
        expected = net((images - mean) / std).detach().numpy()
        assert program(images) == pytest.approx(expected, abs=1e-4)
    assert told(name, path)["normalization"] == "inside"
    assert json.loads(told(name, path)["input"])["range"] == [0, 1]
    assert read_results(run.folder / "results.json").error is None
    assert not list(run.folder.glob("draft-*"))


class Branching(nn.Module):
    """What no exporter can follow: the way through it depends on the numbers."""

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return flat[:, :3] if float(flat.sum()) > 0 else flat[:, 3:6]


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_that_fails_is_told(tmp_path: Path, name: str) -> None:
    images = torch.rand(4, 3, 4, 4)
    (found,) = export_model(
        Branching(), images, tmp_path, [asked(name)], mean=MEAN, std=STD, card="{}"
    ).values()
    assert set(found) == {"error"}
    assert "\n" not in found["error"]
    assert list(tmp_path.iterdir()) == []


def test_the_run_stands_where_an_export_fails(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel\nand much more")

    monkeypatch.setitem(module._WRITERS, "torch_export", fail)
    run = start("defense=ft", "export_model=torch_export")
    results = run_pipeline(run)
    assert results["exported"] == {"torch_export": {"error": "RuntimeError: no kernel"}}
    note = "The purified network was not written as torch_export: RuntimeError: no kernel"
    assert note in notes(results)
    assert f"warning  {note}" in capsys.readouterr().out
    assert read_results(run.folder / "results.json").results == results
    assert (run.folder / "purified.safetensors").exists()


@pytest.mark.parametrize("wrong", ["values", "shape", "nan"])
def test_a_file_with_other_logits_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    change: dict[str, Callable[[Tensor], Tensor]] = {
        "values": lambda logits: logits + 0.01 * logits.abs().max().clamp_min(1),
        "shape": lambda logits: logits[:, :2],
        "nan": lambda logits: logits * torch.nan,
    }

    def write(ready: nn.Module, images: Tensor, path: Path, told: object) -> module.Reader:
        path.write_bytes(b"x")
        return lambda batch: change[wrong](ready(batch))

    monkeypatch.setitem(module._WRITERS, "torch_export", write)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    images = torch.rand(4, 3, 4, 4)
    found = export_model(net, images, tmp_path, ["torch_export"], mean=None, std=None, card="{}")
    assert "its logits" in found["torch_export"]["error"]
    assert list(tmp_path.iterdir()) == []


def test_exporting_leaves_the_network_and_random_numbers_alone(tmp_path: Path) -> None:
    net = (
        MODELS["small_resnet"](num_classes=3, width=4).train().to(memory_format=torch.channels_last)
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.rand(3, 3, 8, 8)
    state = torch.get_rng_state()
    found = export_model(net, images, tmp_path, ["torch_export"], mean=MEAN, std=STD, card="{}")
    assert torch.get_rng_state().equal(state)
    assert "error" not in found["torch_export"]
    assert net.training
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_mistakes_are_found_before_work_starts(
    start: Start, models: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"`export_model` to be a list of onnx, torch_export"):
        run_pipeline(start("export_model=[tflite]"))
    monkeypatch.setitem(module.PACKAGES, "onnx", ("no_such_package",))
    with pytest.raises(ImportError, match=r"needs no_such_package: pip install"):
        run_pipeline(start("export_model=onnx"))
    assert models() == set()
    assert check_formats(["torch_export", "torch_export"]) == ("torch_export",)
    assert check_formats([]) == ()
    for wrong in (None, 3, {"onnx": 1}):
        with pytest.raises(ValueError, match="export_model"):
            check_formats(wrong)
