"""What every run works on: assembled once, whichever entry point asks for it."""

import pytest
import torch

from fst_lightning.data import BackdoorDataModule
from fst_lightning.pipelines import Run, run_pipeline
from fst_lightning.pipelines.assemble import Parts, assemble, load_backdoored, make_scorer
from fst_lightning.pipelines.backdoored import adopt_checkpoint
from fst_lightning.pipelines.build.parts import make_attack, make_source
from fst_lightning.pipelines.runtime.costs import Costs
from tests.pipelines.conftest import Start


def parts_of(run: Run) -> Parts:
    run, checkpoint = adopt_checkpoint(run)
    return assemble(run, BackdoorDataModule(make_source(run), make_attack(run)), checkpoint)


def test_a_file_and_the_store_give_the_same_network(start: Start) -> None:
    results = run_pipeline(start(task="train"))
    path = results["checkpoints"]["backdoored"]
    loaded = []
    for lines in ([], [f"checkpoint={path}", "model=small_resnet", "model.width=4"]):
        parts, costs = parts_of(start(*lines)), Costs()
        fresh = torch.cat([p.flatten() for p in parts.net.parameters()])
        backdoored = load_backdoored(parts, costs)
        weights = torch.cat([p.flatten() for p in parts.net.parameters()])
        assert str(backdoored.path) == path
        assert not torch.equal(fresh, weights)
        assert "train" not in costs.seconds  # The store has it.
        assert parts.run.head == "fc"
        loaded.append(weights)
    assert torch.equal(*loaded)


def test_a_network_without_a_trigger_is_scored_without_one(start: Start) -> None:
    module = make_scorer(parts_of(start("attack=none")))[1]
    assert module.inputs.attack is None
    parts = parts_of(start("attack=badnets"))
    assert make_scorer(parts)[1].inputs.attack is parts.data.attack


def test_a_network_that_does_not_fit_the_images_is_refused(start: Start) -> None:
    run = start("model._target_=torch.nn.Identity", "~model.width")
    with pytest.raises(ValueError, match="to return a tensor of shape"):
        parts_of(run)
