"""Random views of images, against pixels that are known."""

import torch

from fst_lightning.defenses.common.views import random_views


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_mirrored_views_are_the_images_or_their_mirror_images() -> None:
    images = torch.rand(64, 3, 5, 5, generator=seeded())
    views = random_views(images, seeded(), least_area=1.0, flip=True)
    same = ((views - images).abs().amax((1, 2, 3)) < 1e-5).sum()
    mirrored = ((views - images.flip(3)).abs().amax((1, 2, 3)) < 1e-5).sum()
    assert same + mirrored == 64
    assert 16 < mirrored < 48


def test_crops_of_a_ramp_are_steeper_by_no_more_than_the_area_allows() -> None:
    """A crop of side r makes a ramp r times as steep; every image has a crop of its own."""
    ramp = torch.linspace(0, 1, 32).expand(50, 1, 32, 32)
    views = random_views(ramp, seeded(), least_area=0.25)
    slopes = (views[:, 0, 16, 20] - views[:, 0, 16, 12]) / (ramp[0, 0, 16, 20] - ramp[0, 0, 16, 12])
    assert slopes.min() >= 0.5 - 1e-4
    assert slopes.max() <= 1 + 1e-4
    assert len(set(slopes.round(decimals=4).tolist())) > 40
    assert (views >= 0).all()
    assert (views <= 1).all()


def test_colors_change_without_moving_pixels() -> None:
    images = torch.rand(200, 3, 4, 4, generator=seeded())
    views = random_views(images, seeded(), least_area=1.0, color=0.4)
    gray = (views.amax(1) - views.amin(1)).amax((1, 2)) < 1e-5
    unchanged = (views - images).abs().amax((1, 2, 3)) < 1e-5
    assert 15 < int(gray.sum()) < 70
    assert 10 < int(unchanged.sum()) < 60
    order = images.mean(1).flatten(1).argsort(1)
    changed = views.mean(1).flatten(1)
    assert bool((changed.gather(1, order).diff(dim=1) >= -1e-5).all())


def test_the_generator_says_it_all() -> None:
    images = torch.rand(4, 3, 6, 6)
    first = random_views(images, seeded(), least_area=0.3, flip=True, color=0.4)
    torch.manual_seed(5)
    assert torch.equal(first, random_views(images, seeded(), least_area=0.3, flip=True, color=0.4))
