import copy
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import lightning as L
import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics import Metric, MetricCollection

from fst_lightning.models import MODELS, find_head


class Wrapper(L.LightningModule):
    """What users hand to a trainer: a network inside a LightningModule, with a loss."""

    def __init__(self, **networks: nn.Module) -> None:
        super().__init__()
        for name, network in networks.items():
            self.add_module(name, network)
        self.criterion = nn.CrossEntropyLoss()


class Named(nn.Module):
    """A module with the given children and nothing else."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class Scale(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return 8 * logits


def check(net: nn.Module, name: str, num_classes: int) -> None:
    """The head has this name, bare and wrapped, with and without the number of classes."""
    for classes in (None, num_classes):
        found, layer = find_head(net, num_classes=classes)
        assert found == name
        assert layer is net.get_submodule(name)
        assert len(layer.weight) == num_classes
        assert find_head(Wrapper(net=net), num_classes=classes) == (f"net.{name}", layer)
    assert find_head(net, path=name) == (name, layer)


# ---------------------------------------------------------------- networks people have


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("alexnet", "classifier.6"),
        ("convnext_tiny", "classifier.2"),
        ("densenet121", "classifier"),
        ("efficientnet_b0", "classifier.1"),
        ("maxvit_t", "classifier.5"),
        ("mnasnet0_5", "classifier.1"),
        ("mobilenet_v2", "classifier.1"),
        ("mobilenet_v3_small", "classifier.3"),
        ("resnet18", "fc"),
        ("shufflenet_v2_x0_5", "fc"),
        ("swin_t", "head"),
        ("swin_v2_t", "head"),
        ("vgg11_bn", "classifier.6"),
        ("vit_b_32", "heads.head"),
    ],
)
def test_torchvision(name: str, head: str) -> None:
    with torch.device("meta"):
        net = torchvision.models.get_model(name, num_classes=7)
    check(net, head, 7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(name: str) -> None:
    with torch.device("meta"):
        net = torchvision.models.get_model(name, num_classes=7, aux_logits=True, init_weights=False)
    assert sum(isinstance(layer, nn.Linear) for layer in net.modules()) > 1
    check(net, "fc", 7)


def test_a_network_that_ends_in_a_wider_convolution_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 7, 3), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(ValueError, match=r"no linear layer that could be .*It has no linear layer"):
        find_head(net)


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_a_1x1_convolution_that_ends_a_network_is_its_head(name: str) -> None:
    with torch.device("meta"):
        net = torchvision.models.get_model(name, num_classes=7)
    check(net, "classifier.1", 7)


def test_a_1x1_convolution_behind_layers_of_squeeze_and_excitation() -> None:
    excitation = Named(reduce=nn.Linear(16, 4), expand=nn.Linear(4, 16))
    block = Named(conv=nn.Conv2d(16, 16, 3), se=excitation, project=nn.Conv2d(16, 32, 1))
    net = Named(stem=nn.Conv2d(3, 16, 3), body=nn.Sequential(block), fc=nn.Conv2d(32, 7, 1))
    check(net, "fc", 7)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(7), nn.GroupNorm(1, 7)])
def test_a_normalized_convolution_is_no_head(norm: nn.Module) -> None:
    net = Named(fc=nn.Linear(7, 3), branch=nn.Sequential(nn.Conv2d(7, 7, 1), norm))
    check(net, "fc", 3)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 3, 3), nn.Conv2d(6, 3, 1, groups=3), nn.Conv2d(8, 3, 1, stride=2)]
)
def test_other_convolutions_are_no_linear_layers(layer: nn.Conv2d) -> None:
    with pytest.raises(
        ValueError, match=r"name an nn\.Linear or a 1x1 nn\.Conv2d, but `fc` is Conv"
    ):
        find_head(Named(fc=layer), path="fc")


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("convnext_atto", "head.fc"),
        ("efficientnet_b0", "classifier"),
        ("inception_v3", "fc"),
        ("resnet18", "fc"),
        ("swin_tiny_patch4_window7_224", "head.fc"),
        ("vit_tiny_patch16_224", "head"),
    ],
)
def test_timm(name: str, head: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=7)
    check(net, head, 7)
    # The declaration and the search agree.
    for attribute in ("pretrained_cfg", "default_cfg"):
        setattr(net, attribute, None)
    check(net, head, 7)


def test_timm_declaration_comes_before_the_order() -> None:
    with torch.device("meta"):
        net = timm.create_model("vit_tiny_patch16_224", num_classes=7)
        net.decoder = nn.Linear(192, 768)
    check(net, "head", 7)


def test_timm_network_as_wide_as_its_classes() -> None:
    with torch.device("meta"):
        net = timm.create_model("vit_tiny_patch16_224", num_classes=192)
    check(net, "head", 192)


def test_a_declaration_inside_another_counts_for_nothing() -> None:
    with torch.device("meta"):
        net = timm.create_model("vit_tiny_patch16_224", num_classes=7)
        net.patch_embed.backbone = timm.create_model("resnet18", num_classes=7)
    check(net, "head", 7)


def test_timm_distilled_network_is_refused() -> None:
    with torch.device("meta"):
        net = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=7)
    for classes in (None, 7):
        with pytest.raises(ValueError, match=r"More than one .*: `head`, `head_dist`"):
            find_head(net, num_classes=classes)
        with pytest.raises(ValueError, match=r"More than one .*: `net\.head`, `net\.head_dist`"):
            find_head(Wrapper(net=net), num_classes=classes)
    assert find_head(net, path="head_dist")[1] is net.head_dist


@pytest.mark.parametrize(
    ("name", "head"), [("resnetv2_50", "head.fc"), ("dla46_c", "fc"), ("dpn48b", "classifier")]
)
def test_timm_convolutional_head(name: str, head: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=7)
    check(net, head, 7)
    for attribute in ("pretrained_cfg", "default_cfg"):
        setattr(net, attribute, None)
    check(net, head, 7)


def test_timm_declaration_of_another_layer_is_refused() -> None:
    with torch.device("meta"):
        net = timm.create_model("resnet18", num_classes=7)
    net.fc = nn.Conv2d(512, 7, 3)
    with pytest.raises(ValueError, match=r"declares `fc` .* is Conv2d, not nn\.Linear or a 1x1"):
        find_head(net)


def test_timm_head_that_was_replaced_by_several_layers() -> None:
    with torch.device("meta"):
        net = timm.create_model("resnet18", num_classes=1000)
        net.fc = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 7))
    check(net, "fc.3", 7)


def test_timm_auxiliary_head_is_left_out() -> None:
    with torch.device("meta"):
        net = timm.create_model("volo_d1_224", num_classes=7)
    check(net, "head", 7)


@pytest.mark.parametrize("other", [nn.Linear(3, 3), nn.Linear(512, 4)])
def test_timm_network_beside_another_layer_is_refused(other: nn.Linear) -> None:
    with torch.device("meta"):
        net = timm.create_model("resnet18", num_classes=7)
    for parts in ({"net": net, "other": other}, {"other": other, "net": net}):
        with pytest.raises(ValueError, match=r"More than one") as caught:
            find_head(Wrapper(**parts))
        assert "`net.fc`" in str(caught.value)
        assert "`other`" in str(caught.value)
    assert find_head(Wrapper(net=net, other=other), num_classes=7)[0] == "net.fc"


def test_timm_features_under_an_own_head() -> None:
    with torch.device("meta"):
        features = timm.create_model("vit_tiny_patch16_224", num_classes=0)
        head = nn.Linear(192, 7)
    assert find_head(Wrapper(features=features, head=head)) == ("head", head)
    # Also where the head is registered first: a network that says it has no head has none.
    assert find_head(Wrapper(head=head, features=features)) == ("head", head)
    with pytest.raises(ValueError, match="no linear layer that could be the head"):
        find_head(features)


def test_timm_logits_taken_as_features() -> None:
    with torch.device("meta"):
        net = timm.create_model("resnet18", num_classes=100)
        wrapper = Wrapper(net=net, head=nn.Linear(100, 7))
    with pytest.raises(ValueError, match=r"More than one .*: `net\.fc`, `head`"):
        find_head(wrapper)
    assert find_head(wrapper, num_classes=7)[0] == "head"
    assert find_head(wrapper, num_classes=100)[0] == "net.fc"


def test_two_declaring_networks_are_refused() -> None:
    with torch.device("meta"):
        student = timm.create_model("resnet18", num_classes=7)
        teacher = timm.create_model("resnet26", num_classes=7)
    with pytest.raises(ValueError, match=r"More than one .*: `student\.fc`, `teacher\.fc`"):
        find_head(Wrapper(student=student, teacher=teacher))


def test_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 8,
        "patch_size": 4,
    }
    vit = transformers.ViTConfig(**small, num_labels=7)
    check(transformers.ViTForImageClassification(vit), "classifier", 7)
    # `num_labels` says which of two layers it is.
    net = transformers.ViTForImageClassification(vit)
    net.reconstruction = nn.Linear(16, 48)
    check(net, "classifier", 7)
    # A bare encoder has the entry as well, and no head.
    encoder, head = transformers.ViTModel(transformers.ViTConfig(**small)), nn.Linear(16, 7)
    assert find_head(Wrapper(encoder=encoder, head=head)) == ("head", head)
    resnet = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=7
    )
    check(transformers.ResNetForImageClassification(resnet), "classifier.1", 7)
    with pytest.raises(ValueError, match=r"`net\.classifier`, `critic\.0`"):
        find_head(Wrapper(net=net, critic=mlp(5, 3)))
    deit = transformers.DeiTConfig(**small, num_labels=7)
    with pytest.raises(ValueError, match="`cls_classifier`, `distillation_classifier`"):
        find_head(transformers.DeiTForImageClassificationWithTeacher(deit))


@pytest.mark.parametrize("name", ["small_resnet", "resnet18", "preact_resnet18", "vgg19_bn"])
def test_own_networks(name: str) -> None:
    assert name in MODELS
    with torch.device("meta"):
        net = MODELS[name](num_classes=7)
    check(net, "classifier" if name == "vgg19_bn" else "fc", 7)


def test_lightning_demo() -> None:
    net = BoringModel()
    assert find_head(net) == ("layer", net.layer)


def test_a_linear_layer_alone() -> None:
    layer = nn.Linear(4, 3)
    assert find_head(layer) == ("", layer)
    assert find_head(layer, path="") == ("", layer)


# ---------------------------------------------------------------- chains


@pytest.mark.parametrize("container", ["attributes", "sequential", "list", "nested"])
@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=7), classes=st.integers(2, 5))
def test_the_last_layer_of_any_chain_is_its_head(
    container: str, sizes: list[int], classes: int
) -> None:
    sizes = [*sizes, classes]
    layers = [nn.Linear(i, o) for i, o in pairwise(sizes)]
    last = len(layers) - 1
    makers: dict[str, Callable[[], tuple[nn.Module, str]]] = {
        "attributes": lambda: (
            Named(**{f"fc{i}": layer for i, layer in enumerate(layers)}),
            f"fc{last}",
        ),
        "sequential": lambda: (nn.Sequential(*layers), str(last)),
        "list": lambda: (Named(layers=nn.ModuleList(layers)), f"layers.{last}"),
        "nested": lambda: (
            Named(body=nn.Sequential(*layers[:-1]), head=Named(fc=layers[-1])),
            "head.fc",
        ),
    }
    net, name = makers[container]()
    check(net, name, classes)


def test_a_sequential_is_a_chain_whatever_its_sizes() -> None:
    check(nn.Sequential(nn.Linear(4, 10), nn.GLU(), nn.Linear(5, 10)), "2", 10)


def test_no_bias_and_a_constant_factor() -> None:
    net = nn.Sequential(
        OrderedDict(body=nn.Linear(8, 8), fc=nn.Linear(8, 3, bias=False), scale=Scale())
    )
    check(net, "fc", 3)


def test_attention_is_no_head() -> None:
    net = Named(head=nn.Linear(8, 3), pool=nn.MultiheadAttention(8, 2))
    check(net, "head", 3)


def test_the_search_changes_nothing() -> None:
    net = MODELS["small_resnet"](num_classes=5, width=2).train()
    before = copy.deepcopy(net.state_dict())
    find_head(net)
    assert net.training
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


# ---------------------------------------------------------------- more than one


def multi_task(colors: int) -> nn.Module:
    return Named(body=nn.Linear(8, 16), shapes=nn.Linear(16, 10), colors=nn.Linear(16, colors))


def test_multi_task_network_needs_classes_or_a_path() -> None:
    net = multi_task(colors=5)
    with pytest.raises(ValueError, match="More than one") as caught:
        find_head(net)
    message = str(caught.value)
    assert "`shapes`, `colors`" in message
    assert 'head="dotted.name"' in message
    for line in ("body: 8 -> 16", "shapes: 16 -> 10", "colors: 16 -> 5"):
        assert line in message
    assert find_head(net, num_classes=10)[0] == "shapes"
    assert find_head(net, num_classes=5)[0] == "colors"
    assert find_head(net, path="shapes")[0] == "shapes"


def test_equal_tasks_need_a_path() -> None:
    net = multi_task(colors=10)
    with pytest.raises(ValueError, match="More than one layer could be the head"):
        find_head(net, num_classes=10)
    assert find_head(net, path="colors", num_classes=10)[0] == "colors"


def mlp(*sizes: int) -> nn.Sequential:
    layers = [nn.Linear(i, o) for i, o in pairwise(sizes)]
    return nn.Sequential(*layers)


class Task(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(16, 8)
        self.out = nn.Linear(8, outputs)


@pytest.mark.parametrize(
    "net",
    [
        Named(body=nn.Linear(8, 16), a=mlp(16, 8, 10), b=mlp(16, 8, 10)),
        Named(body=nn.Linear(8, 16), a=mlp(16, 8, 10), b=nn.Linear(16, 10)),
        Named(body=nn.Linear(8, 16), heads=nn.ModuleDict({"a": Task(10), "b": Task(10)})),
        Named(body=nn.Linear(8, 16), heads=nn.ModuleList([Task(10), Task(10)])),
        Named(teacher=Named(fc=nn.Linear(32, 10)), student=Task(10)),
        Named(net=Task(10), average=Task(10)),
    ],
    ids=["sequential", "mixed", "dict", "list", "distillation", "moving-average"],
)
def test_equally_good_branches_are_refused(net: nn.Module) -> None:
    for classes in (None, 10):
        with pytest.raises(ValueError, match="More than one layer could be the head"):
            find_head(net, num_classes=classes)
        with pytest.raises(ValueError, match="More than one layer could be the head"):
            find_head(Wrapper(net=net), num_classes=classes)


def test_gan_is_refused() -> None:
    gan = Wrapper(generator=mlp(4, 8, 32), discriminator=mlp(32, 8, 1))
    with pytest.raises(ValueError, match=r"`generator\.1`, `discriminator\.1`"):
        find_head(gan)
    assert find_head(gan, path="discriminator.1")[0] == "discriminator.1"


def test_critic_beside_a_classifier_is_refused() -> None:
    net = Wrapper(net=Named(body=nn.Linear(4, 8), fc=nn.Linear(8, 3)), critic=mlp(5, 1))
    with pytest.raises(ValueError, match="More than one layer could be the head"):
        find_head(net)
    assert find_head(net, num_classes=3)[0] == "net.fc"


def test_one_output_alone_is_a_head() -> None:
    check(Named(body=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 1)), "fc", 1)


# ---------------------------------------------------------------- a layer beside the network


def small_net(classes: int = 5, width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


def refused(net: nn.Module, *names: str) -> None:
    with pytest.raises(ValueError, match="More than one layer could be the head") as caught:
        find_head(net)
    first = str(caught.value).partition(" Name the head")[0]
    assert [name for name in names if f"`{name}`" not in first] == []


@settings(max_examples=100, deadline=None)
@given(
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    classes=st.integers(2, 6),
    width=st.integers(2, 9),
    last=st.booleans(),
)
def test_a_layer_beside_a_network_is_never_its_head_in_silence(
    inputs: int, outputs: int, classes: int, width: int, last: bool
) -> None:
    net, other = small_net(classes, width), nn.Linear(inputs, outputs)
    parts: dict[str, nn.Module] = {"net": net, "other": other}
    module = Wrapper(**(parts if last else dict(reversed(parts.items()))))
    if last and inputs == classes:
        # By its sizes the layer takes the outputs of the network.
        if outputs > 1:
            assert find_head(module)[0] == "other"
        return
    refused(module, "net.4", "other")
    assert find_head(module, path="net.4") == ("net.4", net[4])
    if outputs != classes:
        assert find_head(module, num_classes=classes)[0] == "net.4"


@pytest.mark.parametrize(
    ("parts", "heads"),
    [
        ({"student": small_net(), "teacher": small_net(10, 16)}, ("student.4", "teacher.4")),
        ({"teacher": small_net(10, 16), "student": small_net()}, ("student.4", "teacher.4")),
        ({"net": small_net(), "ema": small_net()}, ("net.4", "ema.4")),
        ({"nets": nn.ModuleList([small_net(), small_net()])}, ("nets.0.4", "nets.1.4")),
        ({"nets": nn.ModuleDict({"a": small_net(), "b": small_net(3)})}, ("nets.a.4", "nets.b.4")),
        ({"net": small_net(), "critic": small_net(1)}, ("net.4", "critic.4")),
        ({"critic": small_net(1), "net": small_net()}, ("net.4", "critic.4")),
        (
            {"net": small_net(), "critic": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 1, 1))},
            ("net.4", "critic.1"),
        ),
        ({"backbone": small_net()[:4], "fc": nn.Linear(8, 5), "projector": mlp(8, 8, 4)}, ("fc",)),
        ({"backbone": small_net()[:4], "projector": mlp(8, 8, 4), "fc": nn.Linear(8, 5)}, ("fc",)),
        ({"net": small_net(), "decoder": nn.Sequential(nn.Linear(8, 48))}, ("net.4", "decoder.0")),
        ({"loc": mlp(90, 32, 6), "fc1": nn.Linear(320, 50), "fc2": nn.Linear(50, 10)}, ("fc2",)),
    ],
)
def test_layouts_with_two_ends_are_refused(
    parts: dict[str, nn.Module], heads: tuple[str, ...]
) -> None:
    refused(Wrapper(**parts), *heads)


def test_weight_averaging_is_refused() -> None:
    net = small_net()
    refused(Wrapper(net=net, ema=AveragedModel(net)), "net.4", "ema.module.4")


def test_one_network_under_two_names_has_one_head() -> None:
    net = small_net()
    assert find_head(Wrapper(net=net, model=net)) == ("net.4", net[4])
    assert find_head(Wrapper(net=net, head=net[4])) == ("net.4", net[4])
    assert find_head(Wrapper(head=net[4], net=net)) == ("head", net[4])
    assert find_head(Wrapper(body=net[:4], net=net)) == ("net.4", net[4])


def test_the_network_of_a_metric_is_left_out() -> None:
    class Distance(Metric):
        def __init__(self) -> None:
            super().__init__()
            self.inception = small_net(10)

        def update(self) -> None:
            """Not needed here."""

        def compute(self) -> float:
            return 0.0

    for parts in ({"net": small_net(), "fid": Distance()}, {"fid": Distance(), "net": small_net()}):
        assert find_head(Wrapper(**parts))[0] == "net.4"
    metrics = MetricCollection({"fid": Distance()})
    assert find_head(Wrapper(net=small_net(), metrics=metrics))[0] == "net.4"


def test_a_head_that_is_registered_first() -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    check(Named(fc=nn.Linear(8, 5), body=body), "fc", 5)


def test_concatenated_towers() -> None:
    towers = {"image": small_net(6), "table": mlp(4, 8, 3)}
    check(Named(**towers, fc=nn.Linear(9, 5)), "fc", 5)


def test_flattened_maps() -> None:
    excited = Named(conv=nn.Conv2d(3, 8, 3), se=mlp(8, 2, 8), out=nn.Conv2d(8, 6, 3))
    check(Named(body=excited, fc=nn.Linear(6 * 5 * 5, 5)), "fc", 5)


# ---------------------------------------------------------------- wrong questions


def test_a_wrong_path_says_what_it_found() -> None:
    net = MODELS["small_resnet"](num_classes=5, width=2)
    with pytest.raises(ValueError, match="`layer1` is Sequential"):
        find_head(net, path="layer1")
    with pytest.raises(ValueError, match="`fcc` is no module of this name; did you mean `fc`"):
        find_head(net, path="fcc")
    with pytest.raises(ValueError, match=r"the head `fc` to have 4 outputs.* but it has 5"):
        find_head(net, path="fc", num_classes=4)


def test_classes_that_no_layer_has() -> None:
    net = MODELS["small_resnet"](num_classes=5, width=2)
    with pytest.raises(ValueError, match="no linear layer with 4 outputs") as caught:
        find_head(net, num_classes=4)
    assert "fc: 16 -> 5" in str(caught.value)
    with pytest.raises(ValueError, match="Expected `num_classes` to be a whole number"):
        find_head(net, num_classes=0)


def parametrised() -> nn.Linear:
    layer = nn.Linear(4, 3)
    nn.utils.parametrizations.weight_norm(layer)
    return layer


def weight_normed() -> nn.Linear:
    layer = nn.Linear(4, 3)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer)
    return layer


def orthogonal() -> nn.Linear:
    layer = nn.Linear(4, 3)
    nn.utils.parametrizations.orthogonal(layer)
    return layer


@pytest.mark.parametrize("make", [parametrised, weight_normed, orthogonal])
def test_a_computed_weight_is_refused(make: Callable[[], nn.Linear]) -> None:
    net = Named(body=nn.Linear(4, 4), fc=make())
    for path in (None, "fc"):
        with pytest.raises(ValueError, match="the head `fc` to be a plain parameter of shape"):
            find_head(net, path=path)


def test_a_packed_weight_is_refused() -> None:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(8, 1))
    with pytest.raises(ValueError, match=r"Linear computes it from others .* packing"):
        find_head(nn.Sequential(layer))


def test_a_lazy_head_is_refused_until_it_has_a_weight() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"`1` is lazy .* pass one batch"):
        find_head(net)
    net(torch.zeros(1, 4))
    check(net, "1", 3)


def test_subclasses_of_linear_are_heads() -> None:
    class Cosine(nn.Linear):
        pass

    check(Named(body=nn.Linear(4, 4), fc=Cosine(4, 3)), "fc", 3)


def test_a_compiled_head_is_found_by_the_name_of_its_wrapper() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU())
    compiled: Any = torch.compile(nn.Linear(6, 3), backend="eager")
    net.add_module("fc", compiled)
    name, layer = find_head(net, "fc")
    assert name == "fc._orig_mod"
    assert layer is compiled._orig_mod
    assert find_head(net)[1] is layer
