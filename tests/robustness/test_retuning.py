"""The retuning attack against a plain loop, and on networks whose memory is known."""

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional

from fst_lightning.robustness import RetuningAttack, rates_of
from tests.defenses.delivered import delivered, hide, trained
from tests.robustness.subjects import subject


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_mixture_is_clean_but_for_its_first_rows() -> None:
    whole = subject()
    mixture = RetuningAttack(poisoned_images=4, share=0.5).mixture(whole, seeded())
    assert len(mixture) == 45
    poisoned = {image.numpy().tobytes() for image in whole.poisoned.images}
    clean = {image.numpy().tobytes() for image in whole.train.images}
    rows = [image.numpy().tobytes() for image in mixture.images]
    assert set(rows[:4]) <= poisoned
    assert len(set(rows[:4])) == 4
    assert set(rows[4:]) <= clean - poisoned
    assert mixture.labels[:4].tolist() == [0] * 4
    few = RetuningAttack(poisoned_images=50, share=0.01).mixture(whole, seeded())
    assert (len(few), len(whole.poisoned)) == (10, 9)


def test_tuning_is_sgd_at_a_constant_rate() -> None:
    whole = subject()
    attack = RetuningAttack(poisoned_images=3, share=0.4, epochs=2, lr=0.05, batch_size=16)
    retuned = attack.retuned(whole, seeded(5))
    numbers, net = seeded(5), copy.deepcopy(whole.purified)
    mixture = attack.mixture(whole, numbers)
    torch.randint(2**62, (), generator=numbers)  # the seed of the global numbers
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    net.train()
    for _ in range(2):
        for images, labels in mixture.batches(16, numbers):
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(net(images), labels))
            optimizer.step()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(retuned.state_dict()[name], value)


def test_a_hidden_backdoor_comes_back_and_a_clean_network_learns_none() -> None:
    honest, _ = delivered(poisoned=0)
    hidden = hide(trained(delivered()[0]), 20)
    attack = RetuningAttack(poisoned_images=5, share=0.5, epochs=5, lr=0.02, batch_size=16)
    back = attack.run(subject(purified=hidden), seeded())
    clean = attack.run(subject(purified=trained(honest)), seeded())
    assert back["o_asr"] == 0
    assert back["p_asr"] > 0.6
    assert clean["p_asr"] < back["p_asr"]
    assert back["images"] == 45
    assert clean["o_asr"] == rates_of(trained(honest), subject()).asr


def test_the_control_is_retuned_on_the_same_images() -> None:
    honest = trained(delivered(poisoned=0)[0])
    whole = subject(purified=honest, make_clean=lambda: honest)
    settings: dict[str, Any] = {"share": 0.5, "epochs": 2, "batch_size": 16}
    found = RetuningAttack(**settings, control=True).run(whole, seeded(3))
    assert found["clean_o_asr"] == found["o_asr"]
    assert found["clean_p_asr"] == found["p_asr"]
    alone = RetuningAttack(**settings).run(whole, seeded(3))
    assert alone == {k: v for k, v in found.items() if not k.startswith("clean_")}


@pytest.mark.parametrize(
    "arguments",
    [{"poisoned_images": 0}, {"share": 0}, {"epochs": 0}, {"lr": 0}, {"batch_size": 1}],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Expected `{next(iter(arguments))}`"):
        RetuningAttack(**arguments)
