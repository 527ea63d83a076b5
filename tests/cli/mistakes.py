"""Command lines as newcomers mistype them: composed at random, then changed at random."""

from __future__ import annotations

import functools
import random
import string
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fst_lightning.cli.paths import is_path
from fst_lightning.configuration import groups
from tests.runs import composed, tiny

TASKS = ("train", "purify", "purify", "detect")
GROUPS = ("attack", "defense", "data", "model", "experiment", "detector")

VALUES = (
    *("", "null", "true", "false", "None", "auto", "abc", "é", "'a b'", "a=b", "missing/file"),
    *("0", "1", "2", "-1", "0.5", "1.5", "-0.1", "7", "nan", "inf", "-inf", "1e-30", "1e30"),
    *("1_000", "0x10", "1000000000000", "5%", "0,5", "1/3", "3.", "'3'", "1 2", "[1", "'", '"'),
    *("[]", "[0.5,0.5,0.5]", "[0,1]", "[a,b]", "[[1]]", "{}", "{a:1}", "${seed}", "${nope}"),
    *("${oc.env:NOPE}", "???", "a,b", "range(0,2)", "choice(1,2)", "_target_", "~", "*", "\\"),
)
NAMES = (
    *("epoch=9-step=100.ckpt", "model (1).pth", "a,b.pth", "modèle.pth", "[best].pth", "run:3.pth"),
    *("100%.pth", "plus+1.pth", "a&b.pth", "x{1}.pth", "$v.pth", "~t.pth"),
    *("#1.pth", "0123", "1e5", "nan", "it's.pth", "'half", "x=", "a\\'b", "end\\", "日本.pth"),
    *("a b,c=d (x)/run", "[a,b", "{", "key=a=b,c=(d)", "${HOME}", "text.pt", "text.pt/x", "@x"),
    "x" * 300,
)
"""Files and folders, most of which do not exist; none of them in somebody's home."""
LONG = ("1000000000000", "1e30", "1_000")
"""Numbers of passes, steps or images that would only take long: nobody's mistake to catch."""

LINES = tuple(
    line
    for row in """
seed | defense | =1 | = | seed = 1 | seed== 1 | +seed=1 | ++seed=1 | ~seed | ~fst | Attack=sig
~defense | ~attack | +attack=badnets | attack@x=badnets | +foo=1 | foo=1 | -seed=1 | defense=FST
attack=badnets,blended | attack=[badnets] | attack.badnets=1 | alpha=1 | lr=0.1 | epochs=3 | gpu=1
tuning.lr=0.1 | model=resnet50 | data=mnist | --gpu | -x | --help=1 | --multirun | -m | --cfg
--cfg=job | --resolve | --info | --config-name=nope | --config-path=nope | --config-dir=nope
-p=model | --package=model | experiment=nope | experiment=cifar10_fst | hydra.run.dir=
checkpoint=missing.pt | checkpoint=. | checkpoint=text.pt | checkpoint='' | checkpoint=7
resume=missing.ckpt | resume=. | resume=text.pt | resume=yes | debug=maybe | retrain=2
data=image_folder | data=image_folder data.root=. | data=npz data.root=text.pt | data=npz
export=text.pt | trainer=gpu | trainer=tpu | trainer.accelerator=cuda | trainer.precision=16
hydra.job.chdir=true | callbacks=[] | +callbacks.a._target_=nope.Nope | +callbacks.a=1
logger=tensorbord | logger=[csv] | defense._target_=nope | model._target_=torch.nn.Linear
attack._target_=os.system | defense=null | data=null | model=null | attack=null
hydra/launcher=joblib | hydra=nope | hydra/sweeper=optuna | hydra.searchpath=[nope]
defense.alpha=auto | defense=fst defense=ft | tuning.optimizer._target_=torch.optim.Nope
tuning.optimizer.nope=1 | report=null | report=html | logger=csv,none | tuning.optimizer=adam
tuning.scheduler=null | tuning=null | training=null | +trainer.plugins=[] | trainer.strategy=fsdp
trainer.strategy=nope | trainer.devices=[] | trainer.devices=[0]
experiment=cifar10_jpeg_narrow | experiment=cifar10_fst defense=none | experiment=cifar10_fst,nope
experiment=[cifar10_fst] | +experiment=cifar10_fst | ~experiment | experiment=null
defense=glob(zz*) -m | seed=glob(*) -m | defense=glob(f*) | attack=glob( -m | model=glob([z*]) -m
hydra.mode=MULTIRUN seed=0,x | hydra.mode=multirun | hydra.mode=RUN seed=0,1 | hydra.mode=
--cfg job -m | hydra.mode=RUN -m
hydra.mode=MULTIRUN hydra.sweep.subdir=same seed=0,1 | seed=0,1 hydra.sweep.subdir=${seed_} -m
seed=0,1 hydra.sweep.dir= -m | seed=0,1 hydra.sweep.subdir= -m | seed=0,1 hydra.sweep.subdir=.. -m
--cfg job --package=nope | --cfg job --package=model.width | --package | --cfg hydra -p hydra.run
--cfg all | --cfg=none | --info=nope | --info=defaults-tree | -sc | -sc install=bash
-sc install=csh | -sc install=zsh,fish
-sc query=bash | --shell-completion uninstall=fish | --version | --vers
--experimental-rerun=text.pt | --experimental-rerun
--config-dir=. --config-name=text | --config-dir=. | --config-name=train | --config-path=.
hydra.job.chdir=true checkpoint=missing.pt | hydra.run.dir=text.pt | hydra.run.dir=x/${nope}
checkpoint=~/missing.pt | checkpoint='~nobody/x.pt' | checkpoint=epoch=9-step=100.ckpt
checkpoint=[best].pt | checkpoint=a,b.pt | checkpoint={1}.pt | checkpoint=$v.pt | checkpoint=a:b.pt
checkpoint=(1).pt | checkpoint=100%.pt | checkpoint=it's.pt | checkpoint=#1.pt | checkpoint=~t.pt
data=image_folder data.root=~nobody | data=npz data.root='a=b.npz' | data=npz data.root=a=b.npz
data.triggered_root=~/nope | paths.store=text.pt | paths.outputs=text.pt | paths.store=
detector=nope | detector=[mm_bd,nope] | detector=mm_bd,nc | detector=[] | detector=null | detector=
detector=glob(m*) | detector=glob(zz*) -m | detector=mm_bd,nc -m | +detector=mm_bd | detector.nc=1
fail_on=p<0.05 | fail_on=0.05 | fail_on=p<2 | fail_on=true | fail_on='p < 0.05' | fail_on=p>0.05
detector_images=3 | detector_reference=missing | detector_reference=text.pt | detector_reference=.
detector_train_reference=x | defense=ft fail_on=p<0.05 | report.inversion=yes | export_model=onxx
--config-dir=. experiment=mine | experiment=mine | experiment=glob(*) | experiment=glob(cifar*) -m
hydra.mode=MULTIRUN | hydra.mode=RUN | hydra.mode=MULTIRUN defense=glob(zz*) | hydra.mode=null
-sc query=bash defense= | -sc install | -sc uninstall=zsh | --shell-completion
hydra.searchpath=[file://nope] | hydra/callbacks=nope | hydra.callbacks.sweep_table._target_=nope
""".strip().splitlines()
    for line in row.split(" | ")
)
"""What people write that have not learned Hydra."""


@dataclass(frozen=True)
class Mistake:
    """A command line, and what was done to it.

    Attributes:
        task: ``train`` or ``purify``.
        arguments: of the command line.
        changed: those that are no longer as they were meant.
    """

    task: str
    arguments: tuple[str, ...]
    changed: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((f"{self.task}.py", *self.arguments))


def mistake(seed: int) -> Mistake:
    """The command line of a number; the same number makes the same one."""
    draw = random.Random(seed)
    task = draw.choice(TASKS)
    chosen = [
        f"{group}={draw.choice(groups()[group])}"
        for group in GROUPS
        if draw.random() < (0.1 if group in ("experiment", "detector") else 0.4)
        and not (group == "defense" and task != "purify")
        and not (group == "detector" and task == "train")
    ]
    chosen = [line for line in chosen if not line.startswith(("data=", "model=timm"))]
    changed: list[str] = []
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        change = draw.choice((value, value, key, option, line, path))
        changed += change(draw, task, chosen)
    lines = tiny(task, [*chosen, *changed])
    return Mistake(task, (*lines, *chosen, *changed), tuple(changed))


def value(draw: random.Random, task: str, chosen: list[str]) -> list[str]:
    """A key that exists, with a value that it may not take."""
    name = draw.choice(leaves(task, tuple(chosen)))
    given = draw.choice(VALUES)
    last = name.rpartition(".")[2]
    if given in LONG and any(part in last for part in ("epoch", "step", "round", "max", "size")):
        given = "-3"
    if name.startswith("trainer.num_nodes"):
        given = draw.choice(("0", "-1", "abc", "null"))
    return [f"{name}={given}"]


def key(draw: random.Random, task: str, chosen: list[str]) -> list[str]:
    """A key that does not exist, but nearly."""
    name = draw.choice(leaves(task, tuple(chosen)))
    return [f"{_mistyped(draw, name)}={draw.choice(VALUES)}"]


def path(draw: random.Random, task: str, chosen: list[str]) -> list[str]:
    """A key of a file or folder, with a name that few have."""
    names = [name for name in leaves(task, tuple(chosen)) if is_path(name)]
    names += ["hydra.run.dir", "hydra.sweep.dir"]
    return [f"{draw.choice(names)}={draw.choice(NAMES)}"]


def option(draw: random.Random, task: str, chosen: list[str]) -> list[str]:
    """An option of a group that does not exist, but nearly."""
    known = groups()
    group = draw.choice(sorted(known))
    return [f"{group}={_mistyped(draw, draw.choice(known[group]))}"]


def line(draw: random.Random, task: str, chosen: list[str]) -> list[str]:
    """One of the lines above, most often as the words that a shell makes of it."""
    return draw.choice(LINES).split(" ") if draw.random() < 0.9 else [draw.choice(LINES)]


def _mistyped(draw: random.Random, word: str) -> str:
    at = draw.randrange(len(word))
    letter = draw.choice(string.ascii_lowercase + "_.-")
    return draw.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + letter + word[at:],
            word[:at] + letter + word[at + 1 :],
            word.upper(),
            word.replace("_", "-"),
            word.rpartition(".")[2],
        )
    )


@functools.lru_cache(maxsize=512)
def leaves(task: str, chosen: tuple[str, ...]) -> list[str]:
    """Every key of a configuration that holds a value."""
    cfg = composed(task, tiny(task, chosen) + list(chosen))
    return sorted(
        name
        for part in cfg
        if part not in ("hydra", "task", "debug")
        for name in _leaves(cfg, str(part))
    )


def _leaves(cfg: DictConfig, name: str) -> list[str]:
    node: Any = cfg._get_node(name.rpartition(".")[2])
    if not isinstance(node, DictConfig) or node._is_none() or OmegaConf.is_interpolation(cfg, name):
        return [name]
    return [
        f"{name}.{below.rpartition('.')[2]}" if "." not in below else f"{name}.{below}"
        for part in node
        for below in _leaves(node, str(part))
    ]
