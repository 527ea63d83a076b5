import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fst_lightning.defenses import FST, FineTuningInit, HeadDefense
from tests import tiny


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head_of(net: nn.Module) -> nn.Linear:
    head = net.get_submodule("head" if hasattr(net, "head") else "1")
    assert isinstance(head, nn.Linear)
    return head


def bias_of(head: nn.Linear) -> Tensor:
    assert isinstance(head.bias, Tensor)
    return head.bias.detach()


@pytest.mark.parametrize("reinit", ["uniform", "orthogonal", "none"])
def test_the_original_weight_is_the_one_that_came_in(reinit: Any) -> None:
    net = tiny.conv_net()
    came_in = head_of(net).weight.detach().clone()
    defense = FST(reinit=reinit)
    defense.prepare(net, seeded())
    assert torch.equal(defense.original_weight, came_in)
    assert torch.equal(head_of(net).weight, came_in) == (reinit == "none")
    with torch.no_grad():
        head_of(net).weight.zero_()
    assert torch.equal(defense.original_weight, came_in)


@pytest.mark.parametrize("bias", [True, False])
def test_uniform_draws_weight_then_bias_from_the_generator(bias: bool) -> None:
    net = tiny.linear_net(100, 10, bias=bias)
    FST(reinit="uniform").prepare(net, seeded(12))
    generator = seeded(12)
    bound = 1 / math.sqrt(100)
    head = head_of(net)
    assert torch.equal(
        head.weight, torch.empty(10, 100).uniform_(-bound, bound, generator=generator)
    )
    if bias:
        expected = torch.empty(10).uniform_(-bound, bound, generator=generator)
        assert torch.equal(bias_of(head), expected)
    else:
        assert head.bias is None


@settings(deadline=None, max_examples=25)
@given(num_features=st.integers(1, 600), num_classes=st.integers(1, 20), seed=st.integers(0, 10**9))
def test_uniform_bounds(num_features: int, num_classes: int, seed: int) -> None:
    net = tiny.linear_net(num_features, num_classes)
    FST(reinit="uniform").prepare(net, seeded(seed))
    bound = 1 / math.sqrt(num_features)
    head = head_of(net)
    for parameter in (head.weight.detach(), bias_of(head)):
        assert float(parameter.abs().max()) <= bound * (1 + 1e-6)


def test_uniform_is_uniform_and_not_rescaled() -> None:
    values, biases, norms = [], [], []
    for seed in range(40):
        net = tiny.linear_net(512, 10)
        with torch.no_grad():
            head_of(net).weight.mul_(50)
        FST(reinit="uniform").prepare(net, seeded(seed))
        head = head_of(net)
        values.append(head.weight.detach().flatten())
        biases.append(bias_of(head))
        norms.append(float(head.weight.detach().norm()))
    bound = 1 / math.sqrt(512)
    # Sorted uniform draws are a straight line (Kolmogorov-Smirnov distance).
    for drawn in (torch.cat(values), torch.cat(biases)):
        share = (drawn.sort().values / bound + 1) / 2
        line = torch.arange(1, len(share) + 1) / len(share)
        assert float((share - line).abs().max()) < 2 / math.sqrt(len(share))
    assert sum(norms) / len(norms) == pytest.approx(math.sqrt(10 / 3), rel=0.01)


@pytest.mark.parametrize(("num_features", "num_classes"), [(64, 10), (15, 10), (6, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_orthogonal_in_the_network(num_features: int, num_classes: int, dtype: torch.dtype) -> None:
    net = tiny.linear_net(num_features, num_classes).to(dtype)
    old = head_of(net).weight.detach().double()
    FST(reinit="orthogonal").prepare(net, seeded())
    head = head_of(net)
    new = head.weight.detach().double()
    step = torch.finfo(dtype).eps
    assert head.weight.dtype == dtype
    assert float(new.norm()) == pytest.approx(float(old.norm()), rel=step)
    assert abs(float((new * old).sum())) < step * float(old.norm()) ** 2
    assert not bool(bias_of(head).any())
    if num_features >= 2 * num_classes:
        assert float((new @ old.T).abs().max()) < step * float(old.norm()) ** 2


@pytest.mark.parametrize("reinit", ["uniform", "orthogonal", "none"])
def test_a_head_without_bias(reinit: Any) -> None:
    net = tiny.conv_net(bias=False)
    defense = FST(reinit=reinit)
    defense.prepare(net, seeded())
    penalty = defense.penalty()
    assert penalty is not None
    torch.autograd.backward(penalty)
    defense.after_step()
    assert head_of(net).bias is None


class Cosine(nn.Module):
    """A head followed by a constant factor, and code after it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = tiny.linear_net(tiny.SIZE**2 * 3, 6)
        self.classifier = nn.Linear(6, tiny.NUM_CLASSES)
        self.scale = 30.0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.classifier(torch.relu(self.features(images)))
        return logits


def test_a_head_that_is_followed_by_a_factor() -> None:
    net = Cosine()
    came_in = net.classifier.weight.detach().clone()
    defense = FST(reinit="none", alpha=0.5)
    defense.prepare(net, seeded())
    assert torch.equal(defense.original_weight, came_in)
    penalty = defense.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.5 * float(came_in.norm()) ** 2, rel=1e-5)


def test_a_head_that_is_named() -> None:
    net = Cosine()
    inner = net.features.get_submodule("1")
    assert isinstance(inner, nn.Linear)
    came_in = inner.weight.detach().clone()
    last = net.classifier.weight.detach().clone()
    defense = FST(head="features.1")
    defense.prepare(net, seeded())
    assert defense.linear is inner
    assert torch.equal(defense.original_weight, came_in)
    assert torch.equal(net.classifier.weight, last)
    with pytest.raises(ValueError, match=r"`features.2`.*\n.*features.1"):
        FST(head="features.2").prepare(net, seeded())


@settings(deadline=None, max_examples=50)
@given(
    alpha=st.floats(1e-4, 10),
    num_classes=st.integers(1, 8),
    num_features=st.integers(2, 20),
    seed=st.integers(0, 999),
)
def test_value_and_gradient_of_the_penalty(
    alpha: float, num_classes: int, num_features: int, seed: int
) -> None:
    net = tiny.linear_net(num_features, num_classes, seed=seed)
    head = head_of(net)
    came_in = head.weight.detach().clone()
    defense = FST(alpha, reinit="uniform")
    defense.prepare(net, seeded(seed + 1))
    penalty = defense.penalty()
    assert penalty is not None
    assert penalty.shape == ()
    expected = alpha * math.fsum(
        w * w0
        for w, w0 in zip(head.weight.flatten().tolist(), came_in.flatten().tolist(), strict=True)
    )
    assert float(penalty.detach()) == pytest.approx(expected, abs=1e-5 * alpha, rel=1e-4)
    torch.autograd.backward(penalty)
    exact = came_in.numpy() * np.float32(alpha)
    assert head.weight.grad is not None
    assert np.array_equal(head.weight.grad.numpy(), exact)
    assert head.bias is not None
    assert head.bias.grad is None


def test_no_penalty_where_alpha_is_zero() -> None:
    defense = FST(alpha=0)
    defense.prepare(tiny.conv_net(), seeded())
    assert defense.penalty() is None


@pytest.mark.parametrize("alpha", [-0.1, "auto", math.nan, math.inf, None, True])
def test_refuses_alpha(alpha: Any) -> None:
    with pytest.raises(ValueError, match="`alpha` to be a number of 0 or more, but got"):
        FST(alpha=alpha)


def test_refuses_a_reinitialization() -> None:
    with pytest.raises(ValueError, match="orthogonal, uniform, none, but got 'normal'"):
        FST(reinit="normal")  # type: ignore[arg-type]


@settings(deadline=None, max_examples=50)
@given(factor=st.floats(1e-3, 1e3), seed=st.integers(0, 999))
def test_the_projection_keeps_norm_and_direction(factor: float, seed: int) -> None:
    net = tiny.linear_net(10, 5, seed=seed)
    head = head_of(net)
    defense = FST(reinit="none")
    defense.prepare(net, seeded())
    with torch.no_grad():
        head.weight.add_(torch.randn(head.weight.shape, generator=seeded(seed))).mul_(factor)
    moved = head.weight.detach().double()
    bias = bias_of(head).clone()
    defense.after_step()
    target = defense.original_weight.double().norm()
    expected = moved * target / moved.norm()
    assert torch.allclose(head.weight.detach().double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(bias_of(head), bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("drift", [0.997, 0.9985, 1.0015, 1.003])
def test_the_projection_is_in_float32_for_half_precision(dtype: torch.dtype, drift: float) -> None:
    net = tiny.linear_net(512, 10).to(dtype)
    head = head_of(net)
    defense = FST(reinit="uniform")
    defense.prepare(net, seeded())
    # As Lightning does with the whole module under bf16-true.
    defense.to(dtype)
    target = defense.original_weight.double().norm()
    with torch.no_grad():
        current = head.weight.double()
        head.weight.copy_(current * target * drift / current.norm())
    moved = head.weight.detach().double()
    defense.after_step()
    # Only the result is rounded: a factor rounded to 8 bits would move hundreds of elements.
    expected = (moved * (target / moved.norm())).to(dtype)
    assert head.weight.dtype == dtype
    assert int((head.weight.detach() != expected).sum()) <= 5
    assert float(head.weight.detach().double().norm()) == pytest.approx(float(target), rel=2**-9)


def test_the_projection_keeps_double_precision() -> None:
    net = tiny.linear_net(12, 5).double()
    head = head_of(net)
    defense = FST(reinit="none")
    defense.prepare(net, seeded())
    with torch.no_grad():
        head.weight.add_(torch.randn(5, 12, dtype=torch.float64, generator=seeded()))
    direction = head.weight.detach() / head.weight.detach().norm()
    defense.after_step()
    projected = head.weight.detach() / head.weight.detach().norm()
    assert torch.allclose(projected, direction, rtol=1e-14, atol=0)


def test_no_projection_unless_asked() -> None:
    net = tiny.conv_net()
    defense = FST(project_norm=False)
    defense.prepare(net, seeded())
    with torch.no_grad():
        head_of(net).weight.mul_(3)
    before = head_of(net).weight.detach().clone()
    defense.after_step()
    assert torch.equal(head_of(net).weight, before)


def test_the_projection_is_no_part_of_the_graph() -> None:
    net = tiny.conv_net()
    defense = FST()
    defense.prepare(net, seeded())
    defense.after_step()
    assert head_of(net).weight.is_leaf
    assert head_of(net).weight.grad_fn is None


@pytest.mark.parametrize(
    ("weight", "arguments", "message"),
    [
        (0.0, {}, "norm to keep, but its weight is all zeros"),
        (0.0, {"reinit": "uniform"}, "norm to keep, but its weight is all zeros"),
        (0.0, {"project_norm": False}, "all zeros"),
        (math.nan, {}, "the head 1 to be finite"),
        (math.inf, {"reinit": "uniform"}, "the head 1 to be finite"),
    ],
)
def test_heads_that_are_no_trained_heads(
    weight: float, arguments: dict[str, Any], message: str
) -> None:
    net = tiny.linear_net(10, 5)
    with torch.no_grad():
        head_of(net).weight.fill_(weight)
    with pytest.raises(ValueError, match=message):
        FST(**arguments).prepare(net, seeded())


def test_the_penalty_before_prepare() -> None:
    with pytest.raises(RuntimeError, match="`prepare` to be called"):
        FST().penalty()


def test_statistics() -> None:
    net = tiny.linear_net(20, 5)
    old = head_of(net).weight.detach().clone()
    defense = FST(reinit="uniform")
    defense.prepare(net, seeded())
    new = head_of(net).weight.detach()
    cosine = torch.cosine_similarity(new.flatten(), old.flatten(), dim=0)
    figures = {name: float(value) for name, value in defense.statistics().items()}
    assert figures["head_cosine"] == pytest.approx(float(cosine), abs=1e-6)
    assert figures["head_norm"] == pytest.approx(float(new.norm()), rel=1e-6)


@pytest.mark.parametrize("prepared", [True, False])
def test_its_state_goes_through_a_state_dict(prepared: bool) -> None:
    net = tiny.conv_net()
    first = FST()
    first.prepare(net, seeded())
    assert list(first.state_dict()) == ["original_weight"]
    second = FST()
    if prepared:
        second.prepare(tiny.conv_net(seed=5), seeded())
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.original_weight, first.original_weight)


def test_a_state_of_another_head_is_refused() -> None:
    first, second = FST(), FST()
    first.prepare(tiny.conv_net(3), seeded())
    second.prepare(tiny.conv_net(4), seeded())
    with pytest.raises(RuntimeError, match="original_weight"):
        second.load_state_dict(first.state_dict())


@pytest.mark.parametrize("kind", [FST, FineTuningInit])
@pytest.mark.parametrize("reinit", ["uniform", "orthogonal"])
def test_the_global_generator_takes_no_part(kind: type[HeadDefense], reinit: Any) -> None:
    heads = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        net = tiny.conv_net()
        kind(reinit=reinit).prepare(net, seeded(4))  # type: ignore[call-arg]
        assert torch.equal(torch.get_rng_state(), state)
        heads.append(head_of(net).weight.detach())
    assert torch.equal(*heads)


def test_the_range_of_alpha_by_hand() -> None:
    """The product of alpha and the squared norm of the head, 3^2 + 4^2, goes from 0.01 to 100."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        head_of(net).weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    low, high = FST().alpha_range(net)
    assert low == pytest.approx(0.01 / 25)
    assert high == pytest.approx(100 / 25)
    with torch.no_grad():
        head_of(net).weight.mul_(0.2)  # a squared norm of exactly 1
    assert FST().alpha_range(net) == pytest.approx((0.01, 100.0))
    with torch.no_grad():
        head_of(net).weight.zero_()
    with pytest.raises(ValueError, match="all zeros"):
        FST().alpha_range(net)


def test_fst_needs_a_head_whatever_its_arguments() -> None:
    assert FST().needs_head
    assert FST(alpha=0.0, reinit="none", project_norm=False).needs_head
