"""One line added to projects that were written without this package."""

from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.demos import LightningTransformer
from lightning.pytorch.demos.boring_classes import BoringModel, DemoModel, RandomDataset
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from fst_lightning.callbacks import DefenseCallback, FSTCallback
from fst_lightning.defenses import FineTuning
from tests.callbacks.projects import Project, Spy, make_loader, make_net, make_trainer, sgd

NUM_CLASSES = 7


def purify(
    project: L.LightningModule, head: str, loader: Any = None, num_outputs: int = NUM_CLASSES
) -> None:
    """One step with the callback: the right head is found, and its norm is kept."""
    layer = project.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == num_outputs
    before = layer.weight.detach().clone()
    callback, spy = FSTCallback(0.1, seed=0), Spy(head)
    make_trainer(spy, callback, limit_train_batches=1).fit(project, loader)
    assert callback.defense.linear is layer
    assert torch.equal(callback.state_dict()["defense"]["original_weight"], before)
    first = spy.first[0][f"{head}.weight"]
    assert abs(float((first * before).sum())) < 1e-4 * float(before.square().sum())
    (after,) = spy.weights
    assert float(after.norm()) == pytest.approx(float(before.norm()), rel=1e-5)
    assert not torch.equal(first, after)


def pictures(size: int = 32, count: int = 4) -> Any:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, size, size, generator=generator)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    return DataLoader(TensorDataset(images, labels), count)


def trained(net: nn.Module, head: str) -> nn.Module:
    """Some vision transformers start from a head of zeros; a trained one is none."""
    weight = net.get_submodule(head).get_parameter("weight")
    nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return net


def slow_rate(parameters: Any) -> SGD:
    return SGD(parameters, lr=1e-3, momentum=0.9)


def test_projects_with_a_single_layer() -> None:
    """Lightning's demo models are a head and nothing else: there are no features to shift."""
    with pytest.raises(MisconfigurationException, match="in front of the head"):
        purify(BoringModel(), "layer", num_outputs=2)
    loader = DataLoader(RandomDataset(32, 8), 4)
    with pytest.raises(MisconfigurationException, match="in front of the head"):
        purify(DemoModel(out_dim=3), "l1", loader, num_outputs=3)


def test_transformer() -> None:
    """A language model: tokens in, and a head with more outputs than inputs."""

    class Offline(LightningTransformer):
        def prepare_data(self) -> None:
            """Download nothing."""

    project = Offline(vocab_size=50)
    tokens = torch.randint(50, (8, 6), generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), 4)
    purify(project, "model.decoder", loader, num_outputs=50)


def test_callback_from_the_module_itself() -> None:
    class Bundled(Project):
        def __init__(self) -> None:
            super().__init__()
            self.purification = [FSTCallback(0.3, seed=1)]

        def configure_callbacks(self) -> Any:
            return self.purification

    bundled, project = Bundled(), Project()
    make_trainer().fit(bundled, make_loader())
    make_trainer(FSTCallback(0.3, seed=1)).fit(project, make_loader())
    for name, value in project.state_dict().items():
        assert torch.equal(value, bundled.state_dict()[name])


def test_network_built_in_configure_model() -> None:
    class Configured(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.classifier: nn.Sequential | None = None

        def configure_model(self) -> None:
            if self.classifier is None:
                self.classifier = make_net()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert self.classifier is not None
            images, labels = batch
            return functional.cross_entropy(self.classifier(images), labels)

        def configure_optimizers(self) -> Any:
            return sgd(self.parameters())

    configured, project = Configured(), Project()
    make_trainer(FSTCallback(0.3, seed=1)).fit(configured, make_loader())
    make_trainer(FSTCallback(0.3, seed=1)).fit(project, make_loader())
    for name, value in project.state_dict().items():
        assert torch.equal(value, configured.state_dict()[name])


def test_losses_in_a_dictionary_and_schedulers() -> None:
    class Elaborate(Project):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            images, labels = batch
            logits = self(images)
            loss = functional.cross_entropy(logits, labels)
            self.log("train/penalty", loss)  # a key that the callback has, too
            return {"loss": loss, "logits": logits}

        def configure_optimizers(self) -> Any:
            optimizer = sgd(self.parameters())
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=10)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    purify(Elaborate(), "classifier.head", make_loader(), num_outputs=4)


def test_head_without_a_bias() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 4, bias=False))
    purify(Project(net), "classifier.3", make_loader(), num_outputs=4)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("whole_module", [False, True])
def test_compiled_network(backend: str, whole_module: bool) -> None:
    plain, project = Project(), Project()
    make_trainer(FSTCallback(0.3, seed=1)).fit(plain, make_loader())
    try:
        if whole_module:
            target: Any = torch.compile(project, backend=backend)
        else:
            project.classifier = torch.compile(project.classifier, backend=backend)  # type: ignore[assignment]
            target = project
        make_trainer(FSTCallback(0.3, seed=1)).fit(target, make_loader())
    except (torch._dynamo.exc.TorchDynamoException, NotImplementedError) as error:
        pytest.skip(f"torch.compile does not work here: {error}")
    for (_, left), (_, right) in zip(
        sorted(plain.named_parameters()), sorted(project.named_parameters()), strict=True
    ):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


slow = pytest.mark.slow

# Network, head inside of it, side of the images.
TORCHVISION: list[Any] = [
    pytest.param("resnet18", {}, "fc", 32, id="resnet18"),
    pytest.param("mobilenet_v3_small", {}, "classifier.3", 32, id="mobilenet_v3_small"),
    pytest.param("vgg11", {}, "classifier.6", 32, id="vgg11", marks=slow),
    pytest.param("efficientnet_b0", {}, "classifier.1", 32, id="efficientnet_b0", marks=slow),
    pytest.param("convnext_tiny", {}, "classifier.2", 32, id="convnext_tiny", marks=slow),
    pytest.param("swin_t", {}, "head", 32, id="swin_t", marks=slow),
    pytest.param("vit_b_16", {"image_size": 32}, "heads.head", 32, id="vit_b_16", marks=slow),
    pytest.param(
        "googlenet",
        {"aux_logits": True, "init_weights": False},
        "fc",
        64,
        id="googlenet",
        marks=slow,
    ),
]


@pytest.mark.parametrize(("name", "arguments", "head", "size"), TORCHVISION)
def test_torchvision(name: str, arguments: dict[str, Any], head: str, size: int) -> None:
    models = pytest.importorskip("torchvision").models
    net = trained(models.get_model(name, num_classes=NUM_CLASSES, **arguments), head)
    if name == "googlenet":
        # Its auxiliary heads stay; their logits are of no use here.
        net.register_forward_hook(lambda module, inputs, outputs: outputs.logits)
    purify(Project(net, slow_rate), f"classifier.{head}", pictures(size))


def test_small_vision_transformer_of_torchvision() -> None:
    models = pytest.importorskip("torchvision").models
    net = models.VisionTransformer(16, 8, 2, 2, 24, 32, num_classes=NUM_CLASSES)
    purify(Project(trained(net, "heads.head"), slow_rate), "classifier.heads.head", pictures(16))


def test_small_swin_of_torchvision() -> None:
    models = pytest.importorskip("torchvision").models
    net = models.SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=NUM_CLASSES)
    purify(Project(net, slow_rate), "classifier.head", pictures(32))


TIMM: list[Any] = [
    pytest.param("resnet10t", {}, "fc", id="resnet10t"),
    pytest.param(
        "vit_tiny_patch16_224",
        {"img_size": 32, "depth": 2, "embed_dim": 48},
        "head",
        id="vit_tiny",
    ),
    pytest.param("convnext_atto", {"depths": (1, 1, 1, 1)}, "head.fc", id="convnext_atto"),
]


@pytest.mark.parametrize(("name", "arguments", "head"), TIMM)
def test_timm(name: str, arguments: dict[str, Any], head: str) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, num_classes=NUM_CLASSES, **arguments)
    purify(Project(trained(net, head), slow_rate), f"classifier.{head}", pictures())


def test_timm_with_a_pooled_head_of_another_kind() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("mobilenetv3_small_050", num_classes=NUM_CLASSES)
    purify(Project(net, slow_rate), "classifier.classifier", pictures())


def tiny_transformer(transformers: Any) -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
        num_labels=NUM_CLASSES,
    )
    net: nn.Module = transformers.ViTForImageClassification(config)
    return net


class Transformers(L.LightningModule):
    """The loss comes out of the network, batches are dictionaries."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.model = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def test_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    images, labels = next(iter(pictures(16)))
    rows: Any = [
        {"pixel_values": image, "labels": label}
        for image, label in zip(images, labels, strict=True)
    ]
    net = trained(tiny_transformer(transformers), "classifier")
    purify(Transformers(net), "model.classifier", DataLoader(rows, 2))


class FrozenBackbone(Project):
    """Features that never train, beside a teacher that is none of anybody's business."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = make_net(3).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, _ = batch
        with torch.no_grad():
            soft = self.teacher(images).softmax(1)
        return functional.cross_entropy(self(images), soft)


def test_two_classifiers_need_a_name() -> None:
    with pytest.raises(ValueError, match=r"`classifier\.head`, `teacher\.head`"):
        make_trainer(FSTCallback()).fit(FrozenBackbone(), make_loader())
    project = FrozenBackbone()
    callback = FSTCallback(0.3, head="classifier.head")
    make_trainer(callback).fit(project, make_loader())
    for name, value in make_net(3).state_dict().items():
        assert torch.equal(project.teacher.state_dict()[name], value)


class Beside(nn.Module):
    """A network, and a layer that could be its head as well."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.other = make_net(), nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


def test_plain_fine_tuning_needs_no_head() -> None:
    alone, beside = Project(make_net()), Project(Beside())
    for project in (alone, beside):
        make_trainer(DefenseCallback(FineTuning(), seed=0)).fit(project, make_loader())
    tuned = beside.classifier.state_dict()
    for name, value in alone.classifier.state_dict().items():
        assert torch.equal(tuned[f"net.{name}"], value)
    with pytest.raises(ValueError, match="More than one layer could be the head"):
        make_trainer(FSTCallback()).fit(Project(Beside()), make_loader())
