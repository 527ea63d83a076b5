"""Logits in what networks return."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import GoogLeNetOutputs

from fst_lightning.models import logits_of, return_as_before, take_logits

LOGITS = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, 1.0]])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "loss": torch.tensor(1.0)},
        SimpleNamespace(logits=LOGITS),
        GoogLeNetOutputs(LOGITS, LOGITS + 1, LOGITS + 2),
    ],
    ids=["tensor", "dictionary", "object", "named tuple"],
)
def test_logits_are_found(output: Any) -> None:
    assert torch.equal(logits_of(output), LOGITS)


def test_logits_of_transformers_are_found() -> None:
    modeling = pytest.importorskip("transformers.modeling_outputs")
    assert torch.equal(logits_of(modeling.ImageClassifierOutput(logits=LOGITS)), LOGITS)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((LOGITS, LOGITS), "returned a tuple"),
        ({"out": LOGITS}, "dict with the keys out"),
        (None, "NoneType"),
        ({"logits": [1.0]}, "dict with the keys logits"),
    ],
)
def test_outputs_without_logits_are_refused(output: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        logits_of(output)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (LOGITS[:, :1], r"\(2, 1\)\. For one logit per image"),
        (LOGITS[:, 0], r"\(2,\)\. For one logit per image"),
        (LOGITS[..., None, None], r"\(2, 3, 1, 1\)\. Is its classification head missing"),
    ],
)
def test_logits_of_other_shapes_are_refused(logits: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logits_of({"logits": logits})


def test_one_logit_as_two_has_the_same_probabilities() -> None:
    """What the error advises: sigmoid(z) is softmax([-z, z] / 2)."""
    logit = torch.linspace(-4, 4, 9)[:, None]
    two = torch.cat([-logit, logit], dim=1) / 2
    torch.testing.assert_close(two.softmax(1)[:, 1:], logit.sigmoid())


class Answers(nn.Module):
    def forward(self, images: Tensor) -> Any:
        return {"logits": images} if self.training else images.softmax(1)


def test_a_network_returns_logits_alone_for_a_while() -> None:
    net = Answers()
    take_logits(net, warn=False)
    for _ in range(2):
        assert torch.equal(net.train()(LOGITS), LOGITS)
        torch.testing.assert_close(net.eval()(LOGITS), LOGITS.log_softmax(1))
    return_as_before(net)
    assert set(net.train()(LOGITS)) == {"logits"}
