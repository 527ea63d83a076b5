"""The guarantees of `orthogonal_to`, each from its definition, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fst_lightning.defenses.common.orthogonal import orthogonal_to


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(num_classes: int, num_features: int, rank: int, seed: int, spread: float = 0.0) -> Tensor:
    """A matrix of a given rank, its singular values over ``spread`` orders of magnitude."""
    generator = seeded(seed)
    size = min(num_classes, num_features, rank)
    left, _ = torch.linalg.qr(torch.randn(num_classes, size, generator=generator).double())
    right, _ = torch.linalg.qr(torch.randn(num_features, size, generator=generator).double())
    singular = 10 ** (-spread * torch.linspace(0, 1, size).double()) * 3
    weight: Tensor = left @ torch.diag(singular) @ right.T
    return weight


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, int]:
    """A weight and its rank: every shape but (1, 1), rank-deficient ones, badly scaled ones."""
    num_classes = draw(st.integers(1, 12))
    num_features = draw(st.integers(1 if num_classes > 1 else 2, 30))
    rank = draw(st.integers(1, min(num_classes, num_features)))
    spread = draw(st.sampled_from((0.0, 1.0, 6.0)))
    scale = 10.0 ** draw(st.integers(-15, 15))
    return drawn(num_classes, num_features, rank, draw(st.integers(0, 999)), spread) * scale, rank


def check_frame(new: Tensor) -> None:
    """Rows, or columns where there are fewer, are orthonormal up to one factor."""
    frame = new if new.shape[0] <= new.shape[1] else new.T
    size = len(frame)
    factor = float(new.norm()) ** 2 / size
    assert torch.allclose(frame @ frame.T / factor, torch.eye(size).double(), rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=200)
@given(weight_and_rank=weights(), seed=st.integers(0, 2**32))
def test_what_holds_for_every_weight(weight_and_rank: tuple[Tensor, int], seed: int) -> None:
    old, rank = weight_and_rank
    new = orthogonal_to(old, seeded(seed))
    assert new.shape == old.shape
    assert new.dtype == torch.float64
    norm = float(old.norm())
    assert float(new.norm()) == pytest.approx(norm, rel=1e-12)
    assert abs(float((new * old).sum())) < 1e-9 * norm**2
    check_frame(new)

    num_classes, num_features = old.shape
    cross = float((new @ old.T).norm()) if num_classes <= num_features else float("nan")
    if num_features >= 2 * num_classes or num_features - rank >= num_classes:
        assert cross < 1e-9 * norm**2
    if num_classes >= 2 * num_features or num_classes - rank >= num_features:
        # Fewer features than classes: the same of the columns.
        assert float((new.T @ old).norm()) < 1e-9 * norm**2


@settings(deadline=None, max_examples=100)
@given(
    num_classes=st.integers(2, 12),
    extra=st.integers(0, 11),
    spread=st.sampled_from((0.0, 1.0, 3.0)),
    seed=st.integers(0, 999),
    transpose=st.booleans(),
)
def test_as_small_as_orthonormal_rows_allow(
    num_classes: int, extra: int, spread: float, seed: int, transpose: bool
) -> None:
    r"""Ky Fan: over orthonormal rows Q the minimum of ||Q W0^T||^2 is the sum of the C smallest
    eigenvalues of W0^T W0 (d x d)."""
    num_features = num_classes + min(extra, num_classes - 1)
    old = drawn(num_classes, num_features, num_classes, seed, spread)
    if transpose:
        new = orthogonal_to(old.T.contiguous(), seeded(seed)).T
    else:
        new = orthogonal_to(old, seeded(seed))
    rows = new / new.norm() * math.sqrt(num_classes)
    reached = float((rows @ old.T).norm()) ** 2

    smallest = torch.linalg.eigvalsh(old.T @ old)[:num_classes]
    scale = float(old.norm()) ** 2
    assert reached == pytest.approx(float(smallest.sum()), rel=1e-6, abs=1e-10 * scale)
    generator = seeded(seed + 1)
    for _ in range(20):
        noise = torch.randn(num_features, num_classes, generator=generator).double()
        rival = torch.linalg.qr(noise)[0].T
        assert reached <= float((rival @ old.T).norm()) ** 2 + 1e-10 * scale


@pytest.mark.parametrize("shape", [(10, 64), (10, 15), (10, 10), (10, 6), (2, 2), (1, 2), (3, 1)])
def test_the_generator_is_the_only_source_of_randomness(shape: tuple[int, int]) -> None:
    old = torch.randn(shape, generator=seeded(7))
    torch.manual_seed(1)
    first = orthogonal_to(old, seeded(3))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = orthogonal_to(old, seeded(3))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    others = [orthogonal_to(old, seeded(seed)) for seed in range(12)]
    # (1, 2) and (2, 2) leave no more than a choice of signs.
    assert any(not torch.allclose(first, other) for other in others)


def test_the_rows_have_no_preferred_direction() -> None:
    old = torch.zeros(1, 4)
    old[0, 0] = 2.0
    draws = torch.cat([orthogonal_to(old, seeded(seed)) for seed in range(3000)])
    assert float(draws[:, 0].abs().max()) < 1e-12
    # Uniform on a sphere of radius 2 in three dimensions: mean 0, covariance 4/3 I.
    assert float(draws[:, 1:].mean(dim=0).abs().max()) < 4.5 * math.sqrt(4 / 3 / 3000)
    assert torch.allclose(draws[:, 1:].T.cov(), torch.eye(3).double() * 4 / 3, atol=0.12)


def test_the_old_weight_stays_as_it_was() -> None:
    old = torch.nn.Parameter(torch.randn(5, 8, generator=seeded(0)))
    before = old.detach().clone()
    new = orthogonal_to(old, seeded(0))
    assert torch.equal(old.detach(), before)
    assert not new.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_point_type(dtype: torch.dtype) -> None:
    old = torch.randn(4, 10, generator=seeded(0)).to(dtype)
    new = orthogonal_to(old, seeded(0))
    assert new.dtype == torch.float64
    assert float((new @ old.double().T).abs().max()) < 1e-9


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(3, 5), "all zeros"),
        (torch.tensor([[1.0, math.nan]]), "NaN or infinity"),
        (torch.tensor([[1.0, math.inf]]), "NaN or infinity"),
        (torch.ones(1, 1), "more than one number"),
    ],
)
def test_refuses(weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        orthogonal_to(weight, seeded(0))
