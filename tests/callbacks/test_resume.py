"""An interrupted run continues as if nothing had happened; anything else is refused."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from fst_lightning.callbacks import DefenseCallback, FSTCallback
from fst_lightning.defenses import FineTuning, LinearProbing
from tests.callbacks.projects import (
    MakeOptimizer,
    Project,
    make_loader,
    make_net,
    make_tensors,
    make_trainer,
    sgd,
)
from tests.callbacks.test_equals_module import adam, scaled


def checkpointing(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1, **options)


def fit(
    folder: Path, max_epochs: int, callback: L.Callback, make_optimizer: MakeOptimizer, **more: Any
) -> Project:
    # Another net than the one that was purified: a resume must not depend on it.
    project = Project(make_net(9 if more.get("ckpt_path") else 0), make_optimizer)
    ckpt_path = more.pop("ckpt_path", None)
    trainer = make_trainer(
        callback,
        checkpointing(folder),
        max_epochs=max_epochs,
        enable_checkpointing=True,
        default_root_dir=folder,
        **more,
    )
    trainer.fit(project, make_loader(), ckpt_path=ckpt_path)
    return project


OPTIONS: dict[str, Any] = {
    "float32": dict,
    "accumulate": lambda: {"accumulate_grad_batches": 3},
    "fp16": scaled,
}


@pytest.mark.parametrize("make_optimizer", [sgd, adam])
@pytest.mark.parametrize("options", OPTIONS)
def test_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, make_optimizer: MakeOptimizer, options: str
) -> None:
    make = OPTIONS[options]
    whole_callback, rest_callback = FSTCallback(0.3, seed=1), FSTCallback(0.3, seed=2)
    whole = fit(tmp_path / "whole", 4, whole_callback, make_optimizer, **make())
    fit(tmp_path / "half", 2, FSTCallback(0.3, seed=1), make_optimizer, **make())
    (last,) = (tmp_path / "half").glob("epoch=1*.ckpt")
    rest = fit(tmp_path / "rest", 4, rest_callback, make_optimizer, ckpt_path=last, **make())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name
    anchors = [
        c.state_dict()["defense"]["original_weight"] for c in (whole_callback, rest_callback)
    ]
    assert torch.equal(*anchors)
    assert torch.equal(anchors[0], make_net().state_dict()["head.weight"])


def test_resume_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """Frozen BatchNorm stays frozen where the first hook of an epoch is not called again."""

    def run(folder: str, ckpt_path: Path | None = None) -> Project:
        project = Project(make_net(batch_norm=True))
        checkpoint = ModelCheckpoint(
            tmp_path / folder, "{step}", every_n_train_steps=4, save_top_k=-1
        )
        trainer = make_trainer(
            DefenseCallback(LinearProbing()), checkpoint, enable_checkpointing=True, max_epochs=2
        )
        trainer.fit(project, make_loader(), ckpt_path=ckpt_path)
        return project

    whole = run("whole")
    rest = run("rest", tmp_path / "whole" / "step=4.ckpt")
    before = make_net(batch_norm=True).state_dict()["norm.running_mean"]
    for project in (whole, rest):
        assert torch.equal(project.state_dict()["classifier.norm.running_mean"], before)


def test_checkpoint_loads_with_weights_only(tmp_path: Path) -> None:
    fit(tmp_path, 1, FSTCallback(0.3), sgd)
    (path,) = tmp_path.glob("*.ckpt")
    state = torch.load(path, weights_only=True)["callbacks"]["FSTCallback"]
    assert torch.equal(state["defense"]["original_weight"], make_net().state_dict()["head.weight"])


def foreign_checkpoint(folder: Path, kind: str) -> Path:
    """What a backdoored model may come in as."""
    project = Project(make_net(7))
    callbacks: list[L.Callback] = []
    if kind == "other callbacks":
        callbacks = [checkpointing(folder), EarlyStopping("val/own_accuracy", patience=9)]
    if kind == "another defense":
        callbacks = [DefenseCallback(FineTuning())]
    trainer = make_trainer(
        *callbacks, enable_checkpointing=kind == "other callbacks", default_root_dir=folder
    )
    trainer.fit(project, make_loader(), make_loader())
    path = folder / "backdoored.ckpt"
    trainer.save_checkpoint(path, weights_only=kind == "no callbacks")
    if kind == "bare":
        content = torch.load(path, weights_only=True)
        kept = ("state_dict", "pytorch-lightning_version", "epoch", "global_step", "loops")
        torch.save(
            {name: content[name] for name in (*kept, "optimizer_states", "lr_schedulers")}, path
        )
    keys = torch.load(path, weights_only=True).keys()
    assert ("callbacks" in keys) == (kind in ("other callbacks", "another defense", "none at all"))
    return path


@pytest.mark.parametrize(
    "kind", ["other callbacks", "another defense", "none at all", "no callbacks", "bare"]
)
def test_foreign_checkpoint_is_refused(tmp_path: Path, kind: str) -> None:
    path = foreign_checkpoint(tmp_path, kind)
    with pytest.raises(MisconfigurationException, match=r"load its weights .* without ckpt_path"):
        make_trainer(FSTCallback(), max_epochs=2).fit(Project(), make_loader(), ckpt_path=path)


def test_refusal_has_no_memory_of_earlier_restores(tmp_path: Path) -> None:
    """Neither an evaluation of an own checkpoint nor a resumed fit opens the door."""
    fit(tmp_path / "own", 1, FSTCallback(), sgd)
    (own,) = (tmp_path / "own").glob("*.ckpt")
    foreign = foreign_checkpoint(tmp_path, "none at all")
    callback = FSTCallback()
    make_trainer(callback).validate(Project(), make_loader(), ckpt_path=own, verbose=False)
    with pytest.raises(MisconfigurationException, match="holds no state"):
        make_trainer(callback, max_epochs=2).fit(Project(), make_loader(), ckpt_path=foreign)
    make_trainer(callback, max_epochs=2).fit(Project(), make_loader(), ckpt_path=own)
    with pytest.raises(MisconfigurationException, match="holds no state"):
        make_trainer(callback, max_epochs=2).fit(Project(), make_loader(), ckpt_path=foreign)


def test_fit_after_a_resume_keeps_the_original_head(tmp_path: Path) -> None:
    fit(tmp_path, 1, FSTCallback(), sgd)
    (own,) = tmp_path.glob("*.ckpt")
    project, callback = Project(), FSTCallback()
    trainer = make_trainer(callback, max_epochs=2)
    trainer.fit(project, make_loader(), ckpt_path=own)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(project, make_loader())
    original = make_net().get_parameter("head.weight")
    assert torch.equal(callback.state_dict()["defense"]["original_weight"], original)


@pytest.mark.parametrize("same_callback", [True, False])
def test_evaluation_of_a_purified_checkpoint(tmp_path: Path, same_callback: bool) -> None:
    """A Trainer that has the callback may test a checkpoint of it, without a fit before."""
    callback = FSTCallback()
    purified = fit(tmp_path, 1, callback, sgd)
    (own,) = tmp_path.glob("*.ckpt")
    project = Project(make_net(8))
    trainer = make_trainer(callback if same_callback else FSTCallback())
    (result,) = trainer.test(project, make_loader(), ckpt_path=own, verbose=False)
    for name, value in purified.state_dict().items():
        assert torch.equal(value, project.state_dict()[name])
    images, labels = make_tensors()
    expected = float((purified(images).argmax(1) == labels).float().mean())
    assert result["val/own_accuracy"] == pytest.approx(expected)


def test_weights_loaded_by_hand_are_the_way_in(tmp_path: Path) -> None:
    path = foreign_checkpoint(tmp_path, "none at all")
    project, callback = Project(), FSTCallback()
    project.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    head = project.state_dict()["classifier.head.weight"].clone()
    make_trainer(callback).fit(project, make_loader())
    assert torch.equal(callback.state_dict()["defense"]["original_weight"], head)


def test_evaluation_with_a_defense_that_makes_its_state_when_it_prepares(tmp_path: Path) -> None:
    class Remembers(FineTuning):
        def prepare(self, net: torch.nn.Module, generator: torch.Generator) -> None:
            super().prepare(net, generator)
            for index, parameter in enumerate(net.parameters()):
                self.register_buffer(f"before{index}", parameter.detach().clone())

    fit(tmp_path, 1, DefenseCallback(Remembers()), sgd)
    (own,) = tmp_path.glob("*.ckpt")
    trainer = make_trainer(DefenseCallback(Remembers()))
    trainer.test(Project(), make_loader(), ckpt_path=own, verbose=False)
    make_trainer(DefenseCallback(Remembers()), max_epochs=2).fit(
        Project(), make_loader(), ckpt_path=own
    )
