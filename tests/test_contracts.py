"""What every attack and every defense in conf/ has to keep, whatever it does."""

import copy
import functools
import json
import math
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from fst_lightning.attacks import Attack
from fst_lightning.configuration import groups
from fst_lightning.defenses import CleanData, Defense, PoisonedData
from fst_lightning.models import small_resnet
from fst_lightning.reports.results.build import plain
from tests.defenses.drive import drive
from tests.runs import option_config, skip_without_packages

SIZE, CLASSES = 12, 4


def small_budgets(config: Any) -> Any:
    """Epochs, steps and iterations of what is made before a run: as few as there can be."""
    for name, value in config.items():
        if isinstance(value, int) and not isinstance(value, bool):
            if name.endswith(("epochs", "rounds")):
                config[name] = 1
            elif name.endswith(("steps", "iterations")):
                config[name] = min(value, 3)
    return config


@functools.cache
def made_attack(option: str) -> Attack:
    config = small_budgets(option_config("attack", option))
    if "poison_ratio" in config:
        config.poison_ratio = 0.25
    made = instantiate(config)
    assert isinstance(made, Attack)
    stored = torch.randint(0, 256, (20, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.arange(20) % CLASSES
    made.prepare(stored, labels, CLASSES, seed=0)
    state = torch.get_rng_state()
    made.fit_once(stored, labels, CLASSES, 0, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    return made


@pytest.fixture(params=groups()["attack"])
def attack(request: pytest.FixtureRequest) -> Attack:
    return copy.deepcopy(made_attack(request.param))


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, option) for group in ("attack", "defense") for option in groups()[group]],
)
def test_a_repr_shows_every_argument(group: str, option: str) -> None:
    if group == "defense":
        skip_without_packages(option)
    config = option_config(group, option)
    first = repr(instantiate(config, _convert_="all")).splitlines()
    shown = first[0] if len(first) == 1 else first[0] + first[1]
    assert type(instantiate(config, _convert_="all")).__name__ in shown
    for name in config:
        assert name == "_target_" or f"{name!s}=" in shown


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (8, 3, SIZE, SIZE), generator=generator) / 255


def test_a_trigger_gives_images_of_8_bit_and_leaves_its_input_alone(
    attack: Attack, images: Tensor
) -> None:
    kept, state = images.clone(), copy.deepcopy(attack.state_dict())
    stamped = attack(images)
    assert (stamped.shape, stamped.dtype) == (images.shape, images.dtype)
    assert stamped.min() >= 0
    assert stamped.max() <= 1
    assert not attack.eight_bit or torch.equal(stamped, (stamped * 255).round() / 255)
    assert torch.equal(images, kept)
    tensors = {name: v for name, v in attack.state_dict().items() if isinstance(v, Tensor)}
    assert all(torch.equal(value, state[name]) for name, value in tensors.items())
    assert attack.has_trigger != torch.equal(stamped, images)


def test_a_trigger_treats_every_image_alike_whatever_the_batch(
    attack: Attack, images: Tensor
) -> None:
    whole = attack(images)
    # Networks sum in another order for another batch, which may cross a step of rounding.
    slack = 1.01 / 255 if list(attack.parameters()) else 0
    assert bool(((whole[3:4] - attack(images[3:4])).abs() <= slack).all())
    assert bool(((whole.flip(0) - attack(images.flip(0))).abs() <= slack).all())
    assert attack(images[:0]).shape == (0, 3, SIZE, SIZE)


def test_a_trigger_comes_back_with_its_state(attack: Attack, images: Tensor) -> None:
    stamped = attack(images)
    other = copy.deepcopy(attack)
    for tensor in (*other.buffers(), *other.parameters()):
        tensor.data.zero_()
    other.load_state_dict(attack.state_dict())
    assert torch.equal(other(images), stamped)


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 20, 16), (1, 12, 12)])
@pytest.mark.parametrize("option", groups()["attack"])
def test_an_attack_prepares_itself_for_the_size_of_its_first_batch(
    option: str, shape: tuple[int, int, int]
) -> None:
    config = small_budgets(option_config("attack", option))
    itself, prepared = instantiate(config), instantiate(config)
    stored = torch.randint(0, 256, (6, *shape), dtype=torch.uint8)
    if not itself.ready:
        with pytest.raises(ValueError, match="fitted or learned"):
            itself.check_ready()
        return
    prepared.prepare(stored, torch.arange(6) % CLASSES, CLASSES, seed=0)
    state = torch.get_rng_state()
    assert torch.equal(itself(stored / 255), prepared(stored / 255))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_plan_takes_the_whole_ratio_and_depends_on_the_seed_alone(attack: Attack) -> None:
    attack.poison_ratio = 0.2  # so that a clean-label attack leaves rows of its class out
    labels = torch.arange(40) % CLASSES
    plan = attack.plan(labels, CLASSES, seed=3)
    again = attack.plan(labels, CLASSES, seed=3)
    torch.randn(3)
    assert plan.num_poisoned == (8 if attack.has_trigger else 0)
    assert torch.equal(plan.poisoned, again.poisoned)
    if attack.has_trigger:
        assert not torch.equal(plan.poisoned, attack.plan(labels, CLASSES, seed=4).poisoned)


def test_poisoned_and_cover_images_are_images(attack: Attack) -> None:
    """Crafted before training, then stamped in every step: as the data module and module do."""
    stored = torch.randint(0, 256, (12, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.arange(12) % CLASSES
    plan = attack.plan(labels, CLASSES, seed=0)
    for rows, cover in ((plan.poisoned, False), (plan.cover, True)):
        index = rows.nonzero()[:, 0]
        if attack.crafts and len(index):
            args = stored[index], labels[index], index
            crafted = attack.craft(*args, cover=cover, seed=1)
            assert (crafted.dtype, crafted.shape) == (torch.uint8, args[0].shape)
            assert torch.equal(crafted, attack.craft(*args, cover=cover, seed=1))
            stored[index] = crafted
    pixels = stored.float() / 255
    with torch.no_grad():
        stamped = attack.stamp(pixels, plan.poisoned, plan.cover)
    clean = ~(plan.poisoned | plan.cover)
    assert (stamped.dtype, stamped.shape) == (pixels.dtype, pixels.shape)
    assert torch.equal(stamped[clean], pixels[clean])
    assert bool(((stamped >= 0) & (stamped <= 1)).all())


def test_target_labels_are_classes_and_asr_leaves_free_successes_out(attack: Attack) -> None:
    labels = torch.arange(12) % CLASSES
    targets = attack.target_labels(labels, CLASSES)
    assert (targets.shape, targets.dtype) == (labels.shape, labels.dtype)
    assert bool(((targets >= 0) & (targets < CLASSES)).all())
    counted = attack.counts_for_asr(labels)
    assert counted.dtype == torch.bool
    assert bool((targets != labels)[counted].all())
    assert bool(counted.any()) == attack.has_trigger


@pytest.fixture(params=groups()["defense"])
def defense(request: pytest.FixtureRequest) -> Defense:
    skip_without_packages(request.param)
    config = small_budgets(option_config("defense", request.param))
    made = instantiate(config, _convert_="all")
    assert isinstance(made, Defense)
    return made


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    # Pipelines keep networks in this layout, in which `view` fails on some weights.
    made = small_resnet(CLASSES, width=4).to(memory_format=torch.channels_last)
    next(made.parameters()).requires_grad_(False)  # frozen by its owner, and to stay so
    return made


@pytest.fixture
def clean(defense: Defense) -> CleanData:
    generator = torch.Generator().manual_seed(2)
    size = (24, 3, SIZE, SIZE)
    images = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    labels = torch.arange(24) % CLASSES
    mean, std = (0.5,) * 3, (0.25,) * 3
    poisoned = PoisonedData(images, labels, mean, std) if defense.needs_poisoned_set else None
    held = CleanData(images, labels, None, mean, std, poisoned)
    return held.split(defense.held_out, generator)


def step(defense: Defense, net: nn.Module, clean: CleanData) -> Tensor:
    """One step of SGD as the drivers do it."""
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net.train()
    for module in defense.always_eval():
        module.eval()
    images, labels = next(clean.batches(8))
    loss = defense.loss(net, images, labels)
    penalty = defense.penalty()
    total = loss if penalty is None else loss + penalty
    torch.autograd.backward(total)
    defense.after_backward()
    defense.before_step()
    optimizer.step()
    defense.after_step()
    return total.detach()


def start(defense: Defense, net: nn.Module, clean: CleanData, seed: int = 0) -> None:
    defense.prepare(net, torch.Generator().manual_seed(seed))
    net.eval()
    defense.study(net, clean, torch.Generator().manual_seed(seed))


def looks(net: nn.Module) -> dict[str, object]:
    """What users of a network can see of it, but for the values."""
    return {
        "shapes": {name: (value.shape, value.dtype) for name, value in net.state_dict().items()},
        "trained": {name: p.requires_grad for name, p in net.named_parameters()},
        "modules": {name: type(module) for name, module in net.named_modules()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
    }


def test_a_defense_runs_and_leaves_an_ordinary_network(
    defense: Defense, net: nn.Module, clean: CleanData
) -> None:
    before = looks(net)
    losses = drive(defense, net, clean, epochs=2, lr=0.01)
    assert (defense.tunes and not defense.done) == bool(losses)
    assert all(math.isfinite(loss) for loss in losses)
    assert looks(net) == before
    assert all(bool(torch.isfinite(value).all()) for value in net.state_dict().values())
    assert json.dumps(plain(defense.findings()))
    state = copy.deepcopy(net.state_dict())
    defense.finish()
    assert looks(net) == before
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("place", ["prepare", "study", "loss"])
def test_it_is_an_ordinary_network_again_wherever_the_run_broke_off(
    defense: Defense, net: nn.Module, clean: CleanData, place: str
) -> None:
    before = looks(net)
    defense.finish()
    defense.prepare(net, torch.Generator().manual_seed(0))
    assert any(p.requires_grad for p in net.parameters())
    if place != "prepare":
        net.eval()
        defense.study(net, clean, torch.Generator().manual_seed(0))
    if place == "loss" and defense.tunes and not defense.done:
        images, labels = next(clean.batches(8))
        assert defense.loss(net, images, labels).shape == ()
    defense.finish()
    assert looks(net) == before


def test_a_defense_draws_from_its_generator_alone(
    defense: Defense, net: nn.Module, clean: CleanData
) -> None:
    other, again = copy.deepcopy(net), copy.deepcopy(defense)
    torch.manual_seed(1)
    start(defense, net, clean, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    start(again, other, clean, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    for one, two in ((net, other), (defense, again)):
        found = two.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in one.state_dict().items())


def test_a_defense_keeps_no_weights_of_the_network_among_its_own(
    defense: Defense, net: nn.Module, clean: CleanData
) -> None:
    start(defense, net, clean)
    weights = {parameter.data_ptr() for parameter in net.parameters()}
    assert not list(defense.parameters())
    assert not weights & {b.data_ptr() for b in defense.buffers() if b.numel()}


def test_what_was_found_comes_back_with_a_checkpoint(
    defense: Defense, net: nn.Module, clean: CleanData
) -> None:
    """A resumed run is prepared, and then gets the state of the run that it continues."""
    again, other = copy.deepcopy(defense), copy.deepcopy(net)
    start(defense, net, clean)
    again.prepare(other, torch.Generator().manual_seed(0))
    other.load_state_dict(net.state_dict())
    again.load_state_dict(defense.state_dict())
    found = again.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in defense.state_dict().items())
    assert again.done == defense.done
    if defense.tunes and not defense.done:
        losses = []
        for one, tuned in ((defense, net), (again, other)):
            torch.manual_seed(0)
            losses.append(step(one, tuned, clean))
        assert torch.equal(*losses)


def test_a_second_preparation_starts_anew(
    defense: Defense, net: nn.Module, clean: CleanData
) -> None:
    before = looks(net)
    for _ in range(2):
        start(defense, net, clean)
        if defense.tunes and not defense.done:
            step(defense, net, clean)
    defense.finish()
    assert looks(net) == before
