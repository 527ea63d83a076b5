"""Checkpoint files as people have them, each written around a tiny network."""

from __future__ import annotations

import argparse
import copy
import functools
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import timm
import torch
import transformers
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import shufflenet_v2_x0_5

State = dict[str, Tensor]
CLASSES = 3
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


class Tiny(nn.Module):
    """Two convolutions, BatchNorm and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        maps: Tensor = self.conv2(self.bn1(self.conv1(images)).relu()).relu()
        return maps.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(images))
        return logits


def tiny(seed: int = 0) -> Tiny:
    """A network whose statistics are not the initial ones."""
    torch.manual_seed(seed)
    net = Tiny()
    for _ in range(2):
        net(torch.rand(8, 3, 8, 8))
    return net.eval()


class Normalized(nn.Module):
    """The network of somebody who normalizes in it."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, scale: float = 1) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1) * scale)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1) * scale)
        self.net, self.scale = net, scale

    def forward(self, images: Tensor) -> Any:
        return self.net((images * self.scale - self.mean) / self.std)


class WithScale(Tiny):
    """A class of somebody's own, with one more tensor."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(images) * self.scale
        return logits


class BackboneAndHead(nn.Module):
    """Names as in mmpretrain."""

    def __init__(self, net: Tiny | None = None) -> None:
        super().__init__()
        self.backbone, self.head = Tiny() if net is None else net, nn.Module()
        self.head.fc = self.backbone.fc
        self.backbone.fc = nn.Identity()  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head.fc(self.backbone(images))  # type: ignore[operator]
        return logits


class Logits(nn.Module):
    """A class of somebody's own around a network of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = transformers.ResNetForImageClassification(
            transformers.ResNetConfig(
                embedding_size=4,
                hidden_sizes=[4, 8],
                depths=[1, 1],
                layer_type="basic",
                id2label={0: "x", 1: "y", 2: "z"},
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(pixel_values=images).logits
        return logits


class Lit(L.LightningModule):
    """As in the lightning-hydra-template."""

    def __init__(self, net: nn.Module, optimizer: Any = None, extra: Any = None) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.save_hyperparameters(logger=False)
        self.net, self.optimizer = net, optimizer
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(CLASSES))

    def training_step(self, batch: Any, index: int) -> Any:
        return self.criterion(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return (self.optimizer or functools.partial(torch.optim.SGD, lr=0.0))(self.parameters())


@dataclass(frozen=True)
class Found:
    """A file that somebody has.

    Attributes:
        write: writes it around the network, and returns the module that its names belong to, or
            None where that is the network.
        says: what the refusal has to show; None where the file works at once.
        target: the network of this project that the file is for.
        own: the class that its owner has, where the refusal asks for it.
        source: makes the network that the file is of.
        exact: whether the numbers in the file are those of the network.
    """

    write: Callable[[Path, Any], nn.Module | None]
    says: str | None = None
    target: Callable[[], nn.Module] = Tiny
    own: Callable[[], nn.Module] | None = None
    source: Callable[[], nn.Module] = tiny
    exact: bool = True


FOUND: dict[str, Found] = {}
ADVICE_KEY = "`checkpoint_key="
ADVICE_SAVE = "torch.save(model.state_dict(), ...)"


def saved(name: str, says: str | None = None, **more: Any) -> Callable[[Any], Any]:
    """Register a file of what a function of the state_dict returns."""

    def register(make: Callable[[State], object]) -> Callable[[State], object]:
        def write(path: Path, net: nn.Module) -> None:
            torch.save(make(net.state_dict()), path)

        FOUND[name] = Found(write, says, **more)
        return make

    return register


def wrapped(name: str, says: str | None = None, **more: Any) -> Callable[[Any], Any]:
    """Register a file of the state_dict of a module around the network."""

    def register(make: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
        def write(path: Path, net: nn.Module) -> nn.Module:
            module = make(copy.deepcopy(net)).eval()
            torch.save(module.state_dict(), path)
            return module

        FOUND[name] = Found(write, says, **more)
        return make

    return register


def written(name: str, says: str | None = None, **more: Any) -> Callable[[Any], Any]:
    """Register a file that a function writes."""

    def register(write: Callable[[Path, Any], Any]) -> Callable[[Path, Any], Any]:
        FOUND[name] = Found(write, says, **more)
        return write

    return register


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def counters(state: State, change: Callable[[Tensor], Tensor]) -> State:
    return {k: change(v) if k.endswith("num_batches_tracked") else v for k, v in state.items()}


def floating(state: State, dtype: torch.dtype) -> State:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}


def optimizer_state() -> dict[str, Any]:
    net = tiny()
    net.train()(torch.rand(4, 3, 8, 8)).sum().backward()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    optimizer.step()
    return optimizer.state_dict()


# state_dicts, and dictionaries around them

saved("state_dict.pt")(lambda state: state)
saved("pytorch_model.bin")(lambda state: OrderedDict(state))
saved("no_suffix")(lambda state: dict(state))
saved("checkpoint.pth.tar")(  # the ImageNet example of PyTorch
    lambda state: {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": prefixed(state, "module."),
        "best_acc1": torch.tensor(90.0),
        "optimizer": optimizer_state(),
        "scheduler": {"_step_count": 1},
    }
)
saved("ckpt.pth")(lambda state: {"net": state, "acc": 91.2, "epoch": 3})  # pytorch-cifar
saved("numpy_accuracy.pth")(lambda state: {"net": state, "acc": np.float64(91.2)})
saved("tutorial.tar")(
    lambda state: {
        "epoch": 5,
        "model_state_dict": state,
        "optimizer_state_dict": optimizer_state(),
        "loss": torch.tensor(0.4),
    }
)
saved("torchvision_references.pth")(
    lambda state: {
        "model": state,
        "optimizer": optimizer_state(),
        "epoch": 1,
        "args": argparse.Namespace(lr=0.1, data_path=Path("/data")),
        "model_ema": {"n_averaged": torch.tensor(3), **prefixed(state, "module.")},
        "scaler": {"scale": 65536.0},
    }
)
saved("weights.pt")(lambda state: {"weights": state})
saved("model_state.pt")(lambda state: {"model_state": state, "epoch": 1})
saved("encoder.pt")(lambda state: {"encoder": state, "epoch": 1})
saved("nested.pt")(lambda state: {"model": {"state_dict": state, "name": "x"}})
saved("deepspeed.pt")(lambda state: {"module": state, "optimizer": None, "ds_version": "0.9"})
saved("composer.pt")(
    lambda state: {"state": {"model": state, "seed": 1}, "rng": [torch.get_rng_state()]}
)
saved("fastai.pth")(lambda state: {"model": state, "opt": optimizer_state()})
saved("yolo.pt")(
    lambda state: {"model": state, "ema": prefixed(state, "module."), "updates": 3, "opt": None}
)
saved("keep_vars.pt")(lambda state: {k: nn.Parameter(v) if v.ndim else v for k, v in state.items()})
saved("channels_last.pt")(
    lambda state: {
        k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in state.items()
    }
)
saved("half.pt", exact=False)(lambda state: floating(state, torch.float16))
saved("bfloat16.pt", exact=False)(lambda state: floating(state, torch.bfloat16))
saved("double.pt")(lambda state: floating(state, torch.float64))
saved("everything_half.pt", exact=False)(lambda s: {k: v.half() for k, v in s.items()})
saved("half_counter_overflow.pt", exact=False)(lambda s: counters(s, lambda v: (v + 70_000).half()))
saved("int32_counters.pt")(lambda state: counters(state, Tensor.int))
saved("counters_of_shape_1.pt")(lambda state: counters(state, lambda v: v.reshape(1)))
saved("no_counters.pt")(
    lambda state: {k: v for k, v in state.items() if "num_batches_tracked" not in k}
)
saved("list_of_states.pt", ADVICE_SAVE)(lambda state: {"models": [state, state]})
saved("list_of_parameters.pt", ADVICE_SAVE)(lambda state: list(state.values()))
saved("items.pt", ADVICE_SAVE)(lambda state: list(state.items()))
saved("numpy.pt", "torch.from_numpy")(lambda s: {k: v.numpy() for k, v in s.items()})
saved("student_and_teacher.pt", ADVICE_KEY)(
    lambda state: {"student": state, "teacher": prefixed(state, "module.")}
)
saved("two_in_one.pt", ADVICE_KEY)(
    lambda state: {**prefixed(state, "student."), **prefixed(state, "teacher.")}
)
saved("ema_pytorch.pt", ADVICE_KEY)(
    lambda state: {
        "initted": torch.tensor(True),
        "step": torch.tensor(3),
        **prefixed(state, "online_model."),
        **prefixed(state, "ema_model."),
    }
)
saved("with_loss.pt", ADVICE_KEY)(
    lambda state: {**prefixed(state, "network."), "loss.center": torch.zeros(2, 2)}
)
saved("swin_buffers.pt")(
    lambda state: {**state, "layers.0.attn.relative_position_index": torch.zeros(4, 4).long()}
)


@written("legacy.pth")
def legacy(path: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)


@written("legacy_with_args.pth")
def legacy_with_args(path: Path, net: nn.Module) -> None:
    value = {"state_dict": net.state_dict(), "args": argparse.Namespace(model=net, path=Path("a"))}
    torch.save(value, path, _use_new_zipfile_serialization=False)


@written("whole_model.pt", ADVICE_SAVE)
def whole_model(path: Path, net: nn.Module) -> None:
    torch.save(net, path)


@written("whole_parallel_model.pt", ADVICE_SAVE)
def whole_parallel_model(path: Path, net: nn.Module) -> None:
    torch.save(nn.DataParallel(net), path)


@written("whole_model_in_a_dictionary.pt", ADVICE_SAVE)
def whole_model_inside(path: Path, net: nn.Module) -> None:
    torch.save({"model": net, "epoch": 3, "optimizer": optimizer_state()}, path)


@written("both.pt")
def whole_model_beside(path: Path, net: nn.Module) -> None:
    torch.save({"model": net, "net": net.state_dict()}, path)


@written("script.pt", ADVICE_SAVE)
def script(path: Path, net: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, torch.rand(1, 3, 8, 8)).save(str(path))  # type: ignore[no-untyped-call]


# Modules around the network

wrapped("data_parallel.pt")(nn.DataParallel)
wrapped("compiled.pt")(functools.partial(torch.compile, backend="eager"))
wrapped("parallel_compiled.pt")(lambda net: torch.compile(nn.DataParallel(net), backend="eager"))
wrapped("swa.pt")(AveragedModel)
wrapped("swa_of_parallel.pt")(lambda net: AveragedModel(nn.DataParallel(net)))
wrapped("ema_timm.pt")(ModelEmaV3)
wrapped("normalized.pt", "data.mean=")(Normalized)
wrapped("normalized_bytes.pt", "data.mean=")(lambda net: Normalized(net, 255))
wrapped("backbone_and_head.pt", "model._target_=", own=BackboneAndHead)(BackboneAndHead)


@wrapped("thop.pt")
def thop(net: nn.Module) -> nn.Module:
    for module in net.modules():
        module.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        module.register_buffer("total_params", torch.zeros(1, dtype=torch.float64))
    return net


@wrapped("pruned.pt")
def pruned(net: Tiny) -> nn.Module:
    for layer in (net.conv1, net.conv2):
        prune.l1_unstructured(layer, "weight", amount=0.3)  # type: ignore[no-untyped-call]
    return net


@wrapped("pruned_parallel.pt")
def pruned_parallel(net: Tiny) -> nn.Module:
    prune.ln_structured(net.conv2, "weight", 0.3, n=2, dim=0)  # type: ignore[no-untyped-call]
    prune.random_unstructured(net.conv2, "bias", 0.3)  # type: ignore[no-untyped-call]
    return nn.DataParallel(net)


@wrapped("weight_norm.pt")
def weight_norm(net: Tiny) -> nn.Module:
    parametrizations.weight_norm(net.conv1)
    parametrizations.weight_norm(net.fc, dim=None)  # type: ignore[arg-type]
    return net


@wrapped("weight_norm_hook.pt")
def weight_norm_hook(net: Tiny) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer, axis in ((net.conv1, 0), (net.conv2, 1)):
            torch.nn.utils.weight_norm(layer, dim=axis)
    return net


@wrapped("spectral_norm.pt")
def spectral_norm(net: Tiny) -> nn.Module:
    parametrizations.spectral_norm(net.conv2)
    parametrizations.spectral_norm(net.fc)
    return net


@wrapped("spectral_norm_hook.pt")
def spectral_norm_hook(net: Tiny) -> nn.Module:
    torch.nn.utils.spectral_norm(net.conv2)
    net(torch.rand(1, 3, 8, 8))
    return net


@wrapped("orthogonal.pt", "remove_parametrizations")
def orthogonal(net: Tiny) -> nn.Module:
    parametrizations.orthogonal(net.fc)
    return net


@wrapped("auxiliary.pt")
def auxiliary(net: nn.Module) -> nn.Module:
    net.AuxLogits = nn.Linear(4, CLASSES)
    return net


@wrapped("auxiliary_parallel.pt")
def auxiliary_parallel(net: nn.Module) -> nn.Module:
    net.auxiliary_head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    return nn.DataParallel(net)


@wrapped("with_scale.pt", "model._target_=", own=WithScale)
def with_scale(net: Tiny) -> nn.Module:
    own = WithScale()
    own.load_state_dict(net.state_dict(), strict=False)
    return own


# safetensors


@written("model.safetensors")
def safetensors(path: Path, net: nn.Module) -> None:
    save_file(dict(net.state_dict()), path)


@written("bfloat16.safetensors", exact=False)
def safetensors_bfloat16(path: Path, net: nn.Module) -> None:
    save_file(floating(net.state_dict(), torch.bfloat16), path, {"format": "pt"})


@written("parallel.safetensors")
def safetensors_parallel(path: Path, net: nn.Module) -> None:
    save_file(prefixed(net.state_dict(), "module."), path)


@written("two.safetensors", ADVICE_KEY)
def safetensors_two(path: Path, net: nn.Module) -> None:
    state = net.state_dict()
    save_file(
        {f"{p}.{k}": v.clone() for p in ("encoder_q", "encoder_k") for k, v in state.items()}, path
    )


# Lightning

HYPER_PARAMETERS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "plain": lambda: {"a": [1, (2, None)], "lr": 1e-3},
    "omegaconf": lambda: OmegaConf.create({"lr": 0.1, "layers": [1, 2], "name": None}),
    "path": lambda: {"root": Path("/data")},
    "namespace": lambda: argparse.Namespace(lr=0.1),
    "attribute_dict": lambda: AttributeDict(lr=0.1),
    "numpy": lambda: {"lr": np.float32(0.1), "weights": np.ones(3)},
    "partial": lambda: {"optimizer": functools.partial(torch.optim.Adam, lr=0.1)},
}


def lightning(state: State, hyper_parameters: object = None) -> dict[str, Any]:
    content = {
        "epoch": 1,
        "global_step": 4,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**prefixed(state, "net."), "criterion.weight": torch.ones(CLASSES)},
        "loops": {},
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer_state()],
        "lr_schedulers": [],
    }
    return content | ({} if hyper_parameters is None else {"hyper_parameters": hyper_parameters})


for _name, _make in HYPER_PARAMETERS.items():
    saved(f"lightning_{_name}.ckpt")(lambda state, make=_make: lightning(state, make()))
saved("lightning_and_ema.ckpt")(
    lambda state: (
        lightning(state)
        | {"state_dict": {**prefixed(state, "net."), **prefixed(state, "ema_net.module.")}}
    )
)
saved("lightning_student.ckpt", ADVICE_KEY)(
    lambda state: (
        lightning(state)
        | {"state_dict": {**prefixed(state, "student."), **prefixed(state, "teacher.")}}
    )
)


def fitted(path: Path, net: nn.Module, *callbacks: L.Callback, **arguments: Any) -> None:
    """What a Trainer writes; the learning rate is 0, so that the network stays as it is."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    data = DataLoader(TensorDataset(torch.rand(4, 3, 8, 8), torch.randint(CLASSES, (4,))), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=2,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        trainer.fit(Lit(net, **arguments), data)
        trainer.save_checkpoint(path)


@written("hydra_template.ckpt")
def hydra_template(path: Path, net: nn.Module) -> None:
    optimizer = functools.partial(torch.optim.Adam, lr=0.0)
    fitted(path, net, optimizer=optimizer, extra={"path": Path("/logs"), "compile": False})


@written("trainer_ema.ckpt")
def trainer_ema(path: Path, net: nn.Module) -> None:
    fitted(path, net, EMAWeightAveraging(decay=0.5))


@written("trainer_swa.ckpt", exact=False)  # it computes BatchNorm's statistics anew
def trainer_swa(path: Path, net: nn.Module) -> None:
    fitted(path, net, StochasticWeightAveraging(swa_lrs=1e-30, swa_epoch_start=1))


# BackdoorBench


def bench(state: State, **more: object) -> dict[str, object]:
    return {
        "model_name": "resnet18",
        "num_classes": np.int64(CLASSES),
        "model": state,
        "data_path": "../data",
        "img_size": (8, 8, 3),
        "clean_data": "cifar10",
        "bd_train": {"poison_indicator": np.array([0, 1]), "ratio": np.float32(0.5)},
        "bd_test": None,
        **more,
    }


saved("attack_result.pt")(bench)
saved("attack_result_images.pt")(
    lambda state: bench(state, bd_test=[(Image.new("RGB", (2, 2)), 1, True), np.array(["a.png"])])
)
saved("defense_result.pt")(
    lambda state: {"model_name": "resnet18", "num_classes": CLASSES, "model": state}
)


# Networks of libraries


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(1)
        return make().eval()

    return build


def timm_network() -> nn.Module:
    net: nn.Module = timm.create_model("test_resnet", num_classes=CLASSES)
    return net


saved("timm.pth", source=seeded(timm_network), target=timm_network)(lambda state: state)
saved("timm_training.pth.tar", source=seeded(timm_network), target=timm_network)(
    lambda state: {
        "epoch": 1,
        "arch": "test_resnet",
        "state_dict": state,
        "state_dict_ema": prefixed(state, "module."),
        "optimizer": optimizer_state(),
        "version": 2,
        "args": argparse.Namespace(lr=0.1),
        "metric": 90.1,
    }
)
saved(
    "torchvision.pth",
    source=seeded(lambda: shufflenet_v2_x0_5(num_classes=CLASSES)),
    target=lambda: shufflenet_v2_x0_5(num_classes=CLASSES),
)(lambda state: state)


@written("timm_folder", source=seeded(timm_network), target=timm_network)
def timm_folder(path: Path, net: nn.Module) -> None:
    save_for_hf(net, path, model_config={"label_names": ["x", "y", "z"]})


@written("transformers_folder", source=seeded(Logits), target=Logits)
def transformers_folder(path: Path, net: Logits) -> None:
    net.net.save_pretrained(path)
    assert json.loads((path / "config.json").read_text())["id2label"]
