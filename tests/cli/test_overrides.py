"""A mistake on the command line names what would be valid."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fst_lightning.cli.overrides import check_overrides
from fst_lightning.configuration import conf_folder, groups
from tests.cli.conftest import Command

MISTAKES = {
    "attck=badnets": ("attck: no such group or key", "Did you mean attack?", "defense"),
    "attack=badnet": ("attack=badnet: no such option", "Did you mean badnets?", "blended"),
    "defense=fsst": ("defense=fsst: no such option", "Did you mean fst?", "ft_init"),
    "model=resnet_18": ("model=resnet_18", "Did you mean resnet18?", "vgg19_bn"),
    "trainer=tpu": ("trainer=tpu: no such option", "cpu", "ddp"),
    "sed=1": ("sed: no such group or key", "Did you mean seed?", "checkpoint"),
    "attack.save_examples=false": (
        "`attack.save_examples` under its new name",
        "`report.examples`",
    ),
    "model.compile=true": ("under its new name", "`training.compile`"),
    "defense.alfa=1": ("no such key in defense", "Did you mean defense.alpha?", "reinit"),
    "defense.aplha=1": ("no such key in defense", "Did you mean defense.alpha?", "project_norm"),
    "tuning.lr=1": ("no such key in tuning", "tuning.optimizer.lr", "max_epochs"),
    "tuning.epochs=1": ("no such key in tuning", "max_epochs", "optimizer"),
    "tuning.optimizer.momentun=1": ("in tuning.optimizer", "momentum", "weight_decay"),
    "tuning.optimizer=adam": ("tuning/optimizer=", "one of adam, adamw, rmsprop, sgd"),
    "tuning/optimizer=adma": ("Did you mean adam?", "Valid: adam, adamw, rmsprop, sgd"),
    "tuning.optimiser.lr=1": ("in tuning", "Did you mean tuning.optimizer.lr?", "batch_size"),
    "lr=0.1": ("lr: no such group or key", "optimizer.lr", "tuning"),
    "alpha=0.1": ("alpha: no such group or key", "Did you mean defense.alpha?", "seed"),
    "attack.poison_rate=0.1": ("in attack", "poison_ratio", "target_label"),
    "precision=32": ("precision: no such group or key", "trainer.precision", "trainer"),
    "data.folder=x": ("in data", "image_size", "num_classes"),
    "robustness=[connectivity,retunin]": (
        "robustness=retunin: no such option",
        "Did you mean retuning?",
        "reactivation",
    ),
    "attack=3": ("attack=3: no such option", "badnets", "blended"),
    "defense.head.name=x": ("defense.head.name: no such key in defense", "reinit", "alpha"),
}


@pytest.mark.parametrize(("override", "parts"), MISTAKES.items())
def test_a_mistake_is_explained_in_one_line(override: str, parts: tuple[str, ...]) -> None:
    more = ["data=fake"] if override.startswith("data") else []
    message = check_overrides("purify", [*more, override])
    assert message is not None
    assert "\n" not in message
    assert len(message) < 600
    for part in parts:
        assert part in message


def test_an_argument_of_another_option_is_explained_by_the_chosen_one() -> None:
    message = check_overrides("purify", ["defense=ft", "defense.alpha=0.1"])
    assert message is not None
    assert "(defense=ft)" in message
    assert "Valid: head, project_norm" in message


def test_every_option_is_listed() -> None:
    for group, options in groups().items():
        message = check_overrides("purify", [f"{group}=nonsense"])
        assert message is not None
        assert message.endswith(f"Valid: {', '.join(options)}.")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("attack=badnets,blendet", "Did you mean blended?"),
        ("defense=ft,fts", "Did you mean"),
        ("attack=badnets,blended defense.alfa=1,2", "Did you mean defense.alpha?"),
        ("defense=fst,ft defense.alpha=0.1,0.2", "(defense=ft)"),
        ("seed=range(3) defense=fsst", "Did you mean fst?"),
        ("sede=range(3)", "Did you mean seed?"),
    ],
)
def test_every_job_of_a_sweep_is_checked(override: str, part: str) -> None:
    message = check_overrides("purify", ["-m", *override.split()])
    assert message is not None
    assert part in message


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["attack=blended", "defense=ft", "seed=3"],
        ["+callbacks.rate._target_=lightning.pytorch.callbacks.LearningRateMonitor"],
        ["+note=text"],
        ["~logger"],
        ["hydra.run.dir=x", "hydra.sweep.dir=y"],
        ["-m", "attack=badnets,blended", "seed=0,1,2", "attack.poison_ratio=0.1,0.05"],
        ["-m", "seed=range(10)"],
        ["-m", "defense=glob(ft*)"],
        ["-m", "defense=glob([ft*,lp],exclude=ft_*)", "seed=0,1"],
        ["hydra.mode=MULTIRUN", "defense=ft,lp"],
        ["--cfg", "job", "--package", "model"],
        ["--cfg", "hydra", "--package", "hydra.run"],
        ["-sc", "install=bash"],
        ["-sc", "uninstall=fish"],
        ["--help"],
        ["--cfg", "job"],
        ["hydra.searchpath=[pkg://elsewhere]", "defense=theirs"],
        ["data.mean=[0.1,0.2,0.3]", "checkpoint='a b.pt'", "defense.head=null"],
    ],
)
def test_what_is_right_passes(arguments: list[str]) -> None:
    assert check_overrides("purify", arguments) is None


@pytest.mark.parametrize("override", ["seed", "seed =1", "a=b=["])
def test_what_is_no_override_is_explained(override: str) -> None:
    message = check_overrides("purify", [override])
    assert message is not None
    assert "key=value" in message


Write = Callable[[str], None]


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes ``experiment/mine.yaml`` into a copy of the configuration, which is then used."""
    folder = tmp_path / "conf"
    shutil.copytree(conf_folder(), folder)

    def write(text: str) -> None:
        file = folder / "experiment" / "mine.yaml"
        file.write_text(f"# @package _global_\n{text}", encoding="utf-8")
        for module in ("configuration", "cli.overrides"):
            monkeypatch.setattr(f"fst_lightning.{module}.conf_folder", lambda: folder)

    return write


def test_a_mistake_inside_a_file_keeps_hydras_words(experiment: Write) -> None:
    experiment("defaults:\n  - override /nope: fst\n")
    for more in ([], ["defense=none"]):
        message = check_overrides("purify", ["experiment=mine", *more])
        assert message is not None
        assert "experiment/mine" in message
        assert "\n" not in message


@pytest.mark.parametrize("task", ["train", "purify"])
@pytest.mark.parametrize("name", groups()["experiment"])
def test_every_experiment_composes_with_both_commands(name: str, task: str) -> None:
    assert check_overrides(task, [f"experiment={name}", "data.root=x"]) is None


def test_an_experiment_that_chooses_what_train_has_no_use_for(experiment: Write) -> None:
    experiment(
        "defaults:\n  - override /defense: anp\n  - override /robustness: [retuning]\n"
        "  - override /tuning: default\ndefense:\n  alpha: 0.3\n"
    )
    for task in ("train", "purify"):
        assert check_overrides(task, ["experiment=mine"]) is None
    message = check_overrides("train", ["experiment=mine", "defense.alpha=0.1"])
    assert message is not None
    assert message.startswith("defense.alpha: no such group or key for train.py")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("-m defense=glob(zz*)", ("defense=glob(zz*): there is nothing to sweep over", "ft_sam")),
        ("-m seed=glob(*)", ("seed=glob(*): there is nothing to sweep over",)),
        ("-m defense=glob(ft*) defense.alpha=1", ("no such key in defense (defense=ft)",)),
        ("-m --cfg job", ("-m --cfg: only one of them",)),
        ("--cfg job --info all", ("--cfg --info: only one of them",)),
        ("--package=model", ("it goes with --cfg job",)),
        ("--cfg job --package=modl", ("--package=modl: no such part", "Did you mean model?")),
        ("--cfg job --package=model.nope", ("--package=model.nope: no such part",)),
        ("-sc", ("-sc : expected one of install=bash",)),
        ("-sc install=csh", ("-sc install=csh: expected one of install=bash, install=zsh",)),
        ("-sc query=bash", ("COMP_LINE",)),
        ("experiment=null", ("experiment=null: one option is needed; ~experiment",)),
        ("-cp .", ("-cp .: a relative --config-path would start at", "--config-dir=.")),
        ("hydra.mode=nope", ("hydra.mode=nope", "RUN, MULTIRUN")),
        ("hydra.mode=RUN seed=0,1", ("seed=0,1: several values at once",)),
        ("--experimental-rerun=x.pkl", ("--experimental-rerun=x.pkl", "can run code")),
    ],
)
def test_flags_and_sweeps_are_explained(arguments: str, parts: tuple[str, ...]) -> None:
    message = check_overrides("purify", arguments.split())
    assert message is not None
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("arguments", "found"), [("attack=blended -m seed=0,1", "seed=0,1"), ("--sweep", "--sweep")]
)
def test_flags_that_are_not_understood_are_named(arguments: str, found: str) -> None:
    message = check_overrides("purify", arguments.split())
    assert message is not None
    assert message.startswith(f"{found}: not understood")


def test_train_has_no_defense() -> None:
    message = check_overrides("train", ["defense=fst"])
    assert message is not None
    assert message.startswith("defense: no such group or key")
    assert "defense" not in message.split("Valid: ")[1].split("(")[0]
    assert check_overrides("train", ["attack=blended"]) is None


@pytest.mark.parametrize("override", ["attck=badnets", "attack=foo", "defense.alfa=1", "-m a=1,2"])
def test_nothing_is_written(override: str, command: Command, tmp_path: Path) -> None:
    outcome = command(*override.split(), small=False)
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert outcome.out == ""
    assert not list(tmp_path.iterdir())


VALUES = {
    "-m seed=0,x": "`seed` to be a whole number, but got 'x'.",
    "-m seed=range(3) defense.alpha=0.1,0.2,abc": "`defense.alpha` to be a number or auto, but",
    "-m defense=ft,fst defense.project_norm=true,maybe": "`defense.project_norm` to be true or",
    "hydra.mode=MULTIRUN attack.target_label=0,1.5": "`attack.target_label` to be a whole number,",
    "defense.reinit=orthonogal": "one of orthogonal, uniform, none, but got 'orthonogal'. Did you "
    "mean orthogonal?",
    "attack.corner=bottom_rigth": "Did you mean bottom_right?",
    "data=image_folder data.cache=steam": "one of auto, off, stream, but got 'steam'. Did you mean",
    "data=image_folder data.classes=cat": "`data.classes` to be a list or null, but got 'cat'.",
    "tuning.optimizer.lr=abc": "`tuning.optimizer.lr` to be a number or auto, but got 'abc'.",
    "training.optimizer.lr=auto": "`training.optimizer.lr` to be a number, but got 'auto'.",
    "tuning.max_epochs=1.5": "`tuning.max_epochs` to be a whole number, but got 1.5.",
    "++tuning.balanced=yes": "`tuning.balanced` to be true or false, but got 'yes'.",
    "report.enabled=no": "`report.enabled` to be true or false, but got 'no'.",
    "debug=maybe": "`debug` to be true or false, but got 'maybe'.",
    "model.head=-0.1": "`model.head` to be text or null, but got -0.1.",
    "training.compile=1": "`training.compile` to be true or false, but got 1.",
    "num_workers=abc": "`num_workers` to be a whole number or null, but got 'abc'.",
    "seed='3'": "`seed` to be a whole number, but got '3'.",
}


@pytest.mark.parametrize(("arguments", "part"), VALUES.items())
def test_a_value_of_another_type_is_found_before_the_first_job(arguments: str, part: str) -> None:
    message = check_overrides("purify", arguments.split())
    assert message is not None
    assert message.startswith("Expected `")
    assert part in message


@pytest.mark.parametrize(
    "arguments",
    [
        "defense.alpha=auto tuning.optimizer.lr=auto",
        "-m defense.alpha=0,1,0.5,auto",
        "-m defense.alpha=interval(0,1)",
        "val_images=null resume=x.ckpt",
        "seed=${oc.env:SEED} defense.reinit=${defense.nope}",
        "data=image_folder data.classes=[cat,1] data.root=???",
        "model._target_=torch.nn.Linear",
        "attack._target_=${oc.env:NOPE} attack.corner=x",
        "defense=fst defense._target_=${nope} defense.alpha=x",
        "training.optimizer.lr=1",
        "checkpoint=7 num_workers=2 attack.image=x.png",
    ],
)
def test_a_value_that_may_be_right_passes(arguments: str) -> None:
    assert check_overrides("purify", arguments.split()) is None
