import pytest
import torch

from fst_lightning.attacks.common.generator_attack import Generator, reverse_gradient


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (32, 32), (64, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_maps_of_any_size(size: tuple[int, int], channels: int) -> None:
    images = torch.rand(3, channels, *size)
    maps = Generator(channels, 2, width=4)(images)
    assert maps.shape == (3, 2, *size)
    assert bool((maps.abs() <= 1).all())
    assert Generator(channels, 2, width=4)(images[:0]).shape == (0, 2, *size)


def test_a_map_depends_on_its_image_alone() -> None:
    torch.manual_seed(0)
    generator, images = Generator(3, 3, width=8), torch.rand(6, 3, 16, 16)
    trained = generator(images)
    assert torch.allclose(generator.eval()(images[2:3]), trained[2:3], atol=1e-5)
    assert not torch.allclose(trained[0], trained[1], atol=1e-3)


def test_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    generator, images = Generator(3, 3, width=8), torch.rand(2, 3, 16, 16)
    expected = generator(images)
    with torch.autocast("cpu", torch.bfloat16):
        maps = generator(images)
    assert maps.dtype == torch.float32
    assert torch.equal(maps, expected)


def test_weights_of_another_type() -> None:
    maps = Generator(3, 1, width=4).double()(torch.rand(2, 3, 8, 8))
    assert maps.dtype == torch.float32


@pytest.mark.parametrize("width", [0, -1, 1.5, True])
def test_refuses_a_width(width: int) -> None:
    with pytest.raises(ValueError, match="`width` to be a whole number of 1 or more"):
        Generator(3, 3, width)


@pytest.mark.parametrize("scale", [0.0, 0.5, 20.0])
def test_a_reversed_gradient_has_the_other_sign_and_the_scale(scale: float) -> None:
    values = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    weight = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
    reversed_ = reverse_gradient(values, scale)
    assert torch.equal(reversed_, values)
    (weight * reversed_).square().sum().backward()  # type: ignore[no-untyped-call]
    # By hand: d/dv (w v)^2 = 2 w^2 v, d/dw = 2 w v^2.
    assert values.grad is not None
    assert weight.grad is not None
    assert values.grad.tolist() == pytest.approx([-scale * g for g in (0.5, -4.0, 24.0)])
    assert weight.grad.tolist() == pytest.approx([1.0, 8.0, 36.0])
