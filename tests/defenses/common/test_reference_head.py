"""The record of a head's original weight: what it recognizes, and that it goes with copies."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fst_lightning.defenses.common.reference_head import ReferenceHead


def make_head(seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(6, 3)


def purified(head: nn.Linear, owner: str = "one") -> nn.Linear:
    """A head that an owner has started from and left with other weights."""
    record = ReferenceHead(head)
    record.start(head.weight, owner)
    head.load_state_dict(make_head(1).state_dict())
    record.stop()
    return head


def test_a_fresh_head_has_no_record() -> None:
    record = ReferenceHead(make_head())
    assert record.original is None
    assert not record.left_by("one")
    record.stop()  # nothing was started
    assert record.original is None


def test_the_original_weight_is_kept() -> None:
    record = ReferenceHead(purified(make_head()))
    assert record.original is not None
    assert torch.equal(record.original, make_head().weight)
    assert record.is_known
    assert record.left_by("one")
    assert not record.left_by("two")


def test_original_and_left_weights_are_known_and_others_are_not() -> None:
    head = purified(make_head())
    record = ReferenceHead(head)
    head.load_state_dict(make_head().state_dict())
    assert record.is_known
    assert not record.left_by("one")
    head.load_state_dict(make_head(2).state_dict())
    assert not record.is_known


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounding_is_no_change(dtype: torch.dtype) -> None:
    head = purified(make_head()).to(dtype)
    assert ReferenceHead(head).left_by("one")
    assert ReferenceHead(head.float()).left_by("one")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))])
def test_the_record_goes_with_copies(copied: object) -> None:
    head = purified(make_head())
    assert callable(copied)
    record = ReferenceHead(copied(head))
    assert record.original is not None
    assert torch.equal(record.original, make_head().weight)


def test_the_record_is_plain_and_no_part_of_the_state() -> None:
    head = purified(make_head())
    assert head.state_dict().keys() == {"weight", "bias"}
    assert b"fst_lightning.defenses" not in pickle.dumps(head)
