"""The backdoored model of a run: read from a file, taken from the store, or trained."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from fst_lightning.attacks import Attack, TrainedAttack
from fst_lightning.checkpoints import (
    SCHEMA,
    Checkpoint,
    CheckpointError,
    KeyMap,
    ModelCard,
    StoreError,
    StoreUse,
    load_into,
    read_checkpoint,
    write_state,
)
from fst_lightning.checkpoints.errors import shown
from fst_lightning.data import BackdoorDataModule, ImageData, Source
from fst_lightning.modules import BackdoorModule, InputPipeline
from fst_lightning.pipelines.build.arguments import located
from fst_lightning.pipelines.build.card_settings import ATTACK_FILE, adopt_card
from fst_lightning.pipelines.build.library_input import adopt_library_input
from fst_lightning.pipelines.build.library_networks import library_network
from fst_lightning.pipelines.build.parts import (
    augmentation,
    make_optimizer,
    make_store,
    make_trainer,
    network_arguments,
    precision_of,
)
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.runtime.costs import Costs
from fst_lightning.pipelines.runtime.processes import agreed, is_first_process
from fst_lightning.pipelines.runtime.resume import named_digest, resume_point

_FIRST_IMAGES = 5000
_LISTED = 5
_MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class Backdoored:
    """A backdoored model that is loaded.

    Attributes:
        path: The file with its weights.
        keys: The names of the weights in that file.
        card: Describes the network.
        identity: The store's key, or a digest of the file; different models differ in it.
        use: Keeps the model in the store during the run.
    """

    path: Path
    keys: KeyMap | None
    card: ModelCard
    identity: str
    use: StoreUse | None = None


def open_checkpoint(run: Run) -> Checkpoint | None:
    """Read the file of ``checkpoint`` and ``checkpoint_key``; None if no file is given.

    Raises:
        ValueError: If there is a key and no file, or the file cannot be used.
    """
    key = None if run.cfg.checkpoint_key is None else str(run.cfg.checkpoint_key)
    if run.cfg.checkpoint is not None:
        return read_checkpoint(Path(run.cfg.checkpoint), key)
    if key is not None:
        raise ValueError(f"Expected `checkpoint=` beside `checkpoint_key={key}`, but got none.")
    return None


def adopt_checkpoint(run: Run) -> tuple[Run, Checkpoint | None]:
    """Open the checkpoint of a run and adopt the settings that it, or its network, declares.

    Returns:
        The run, and the checkpoint; None if the run names none.
    """
    checkpoint = open_checkpoint(run)
    if checkpoint is not None:
        run = adopt_card(run, checkpoint)
    if checkpoint is None or checkpoint.card is None:
        run = adopt_library_input(run)
    return run, checkpoint


def from_file(
    run: Run,
    checkpoint: Checkpoint,
    net: nn.Module,
    source: Source,
    attack: Attack,
    card: ModelCard,
) -> Backdoored:
    """Load weights from a file into the network, and the trigger from the file beside it.

    Raises:
        ValueError: If the attack learns its trigger with the model and the file is missing.
    """
    data = source.load()
    _check_order(checkpoint, data.classes)
    try:
        keys = load_into(net, checkpoint, mean=data.mean, std=data.std)
    except CheckpointError as error:
        wanted = run.cfg.model.get("name", run.choices["model"])
        if fitting := library_network(checkpoint.tensors, wanted):
            error.add_note(f"Its names and shapes are those of {fitting}.")
        raise
    if is_first_process():
        for note in _notes(checkpoint, keys, run.cfg.checkpoint_key):
            print(f"{run.cfg.task}: {note}", flush=True)
    if not load_attack(attack, checkpoint.path):
        if isinstance(attack, TrainedAttack) and source.triggered_root is None:
            raise ValueError(
                f"Expected {ATTACK_FILE} beside {checkpoint.path}, because attack="
                f"{run.choices['attack']} learns its trigger with the model. Put it there, measure "
                "with data.triggered_root=DIR (a folder of triggered images), or set attack=none."
            )
        fit_attack(run, source, attack, torch.device("cpu"))
    digest = checkpoint.digest[:16]
    identity = digest if run.cfg.checkpoint_key is None else f"{digest} {run.cfg.checkpoint_key}"
    return Backdoored(checkpoint.path.absolute(), keys, card, identity)


def _check_order(checkpoint: Checkpoint, classes: Sequence[str]) -> None:
    """Refuse classes that are in another order than in the checkpoint.

    Raises:
        ValueError: If the names are the same but their order differs.
    """
    card = checkpoint.card
    labels = checkpoint.extra.get("labels", () if card is None else card.classes)
    if isinstance(labels, tuple) and set(labels) == set(classes) and labels != tuple(classes):
        order = ",".join(map(str, labels))
        raise ValueError(
            f"Expected the classes in the order of {checkpoint.path}, but the data has "
            f"{','.join(classes)}. Set 'data.classes=[{order}]'."
        )


def _notes(checkpoint: Checkpoint, keys: KeyMap, key: str | None) -> list[str]:
    """One line for each part of a file that is ignored or changed."""
    notes = []
    if checkpoint.others and key is None:
        others = ", ".join(map(shown, checkpoint.others[:_LISTED]))
        notes.append(
            f"{checkpoint.path} holds further networks: {others}; `checkpoint_key=` takes one"
        )
    if keys.folds:
        notes.append(
            f"folds {len(keys.folds)} weights that the file stores in parts; all their numbers are "
            "tuned, and purified.safetensors stores the parts again"
        )
    return notes


def from_store(
    run: Run, net: nn.Module, source: Source, attack: Attack, card: ModelCard, costs: Costs
) -> Backdoored:
    """Load the model of this configuration from the store; train it first if it is missing.

    Several processes may ask for the same model at the same time. A lock lets one of them train it.
    The processes of further devices take no lock, because the first process holds it while they
    train together. If a launcher started them at the same time, the first process tells them what
    it found in the store. Loading a model that exists needs neither the lock nor write access.
    """
    store = make_store(run)
    description = describe(run, source.load())
    key = store.key(description)
    leader = is_first_process()
    digest = named_digest(run, "train", store.root / "work" / key)
    if digest is not None:
        description = {**description, "resumed_from": digest}
        key = store.key(description)
        if leader:
            print(
                f"train: a model that continues from {run.cfg.resume} has its own key, {key}; "
                "that of an uninterrupted training is another one",
                flush=True,
            )

    def found() -> StoreUse | None:
        return None if run.cfg.retrain else store.use(key)

    use = found()
    with store.lock(key) if leader and use is None else nullcontext():
        use = use or found()
        if agreed(use is not None):
            use = use or found()  # The first process found it, so this one does too.
            if use is None:
                raise StoreError(
                    f"{store.root}: the model {key} was removed just now; start the run again."
                )
            path = use.path / _MODEL_FILE
            load_into(net, read_checkpoint(path))
            load_attack(attack, path)
            return Backdoored(path.absolute(), None, card, key, use)
        with costs.of("train"):
            train_backdoored(run, net, source, attack, card, store.work(key))

        def write(folder: Path) -> None:
            write_state(folder / _MODEL_FILE, net.state_dict(), card=card)
            if attack.needs_fit or isinstance(attack, TrainedAttack):
                write_state(folder / ATTACK_FILE, attack_state(attack))

        if leader:
            store.keep(key, description, write, replace=True)
            store.clear_work(key)
            use = store.use(key)
    path = store.root / "models" / key / _MODEL_FILE
    return Backdoored(path.absolute(), None, card, key, use)


def train_backdoored(
    run: Run, net: nn.Module, source: Source, attack: Attack, card: ModelCard, work: Path
) -> L.Trainer:
    """Train the network on poisoned data, in place."""
    recipe = run.cfg.training
    data = source.load()
    optimizer, scheduler = make_optimizer(recipe)
    module = BackdoorModule(
        net,
        attack,
        optimizer,
        scheduler,
        recipe.scheduler_interval,
        mean=data.mean,
        std=data.std,
        **augmentation(run, "training", source),
        label_smoothing=recipe.label_smoothing,
        cuda_graphs=run.cfg.cuda_graphs,
        compile_network=recipe.compile,
        seed=run.cfg.seed,
        card=card.to_json(),
    )
    datamodule = BackdoorDataModule(
        source,
        attack,
        batch_size=recipe.batch_size,
        seed=run.cfg.seed,
        num_workers=run.cfg.num_workers,
        val_images=run.cfg.val_images,
    )
    trainer = make_trainer(run, "train", recipe.max_epochs, work)
    fit_attack(run, source, attack, trainer.strategy.root_device)
    initialize(net, data)
    trainer.fit(module, datamodule, ckpt_path=resume_point(run, work, "train"), weights_only=True)
    net.cpu()
    return trainer


def initialize(net: nn.Module, data: ImageData) -> None:
    """Let a network compute statistics of training images before it is trained, if it needs any."""
    look = getattr(net, "initialize", None)
    if look is not None:
        images = InputPipeline(None, data.mean, data.std)(data.train.images[:_FIRST_IMAGES])
        look(images)


def fit_attack(run: Run, source: Source, attack: Attack, device: torch.device) -> None:
    """Fit the attack, or load an earlier fit from the store, which many models share."""
    if not attack.needs_fit or attack.fitted:
        return
    data, store = source.load(), make_store(run)
    train, num_classes, seed = data.train, data.num_classes, int(run.cfg.seed)
    attack.prepare(train.images, train.labels, num_classes, seed)
    arguments = run.plain("attack")
    description = {
        "schema": SCHEMA,
        "kind": "fitted attack",
        "data": {"name": run.choices["data"], "content": fingerprint(data)},
        "attack": {
            "name": run.choices["attack"],
            **{name: arguments[name] for name in attack.fit_arguments},
        },
        "seed": seed,
    }
    key = store.key(description)
    use = store.use(key)
    # The processes of a run pass here one after the other, and the first one fits.
    with nullcontext() if use else store.lock(key):
        use = use or store.use(key)
        if use is not None:
            load_attack(attack, use.path / ATTACK_FILE)
            return
        if is_first_process():
            print(f"{run.choices['attack']}: fits its trigger, once for this data", flush=True)
        attack.fit_once(train.images, train.labels, num_classes, seed, device)
        attack.cpu()
        store.keep(
            key,
            description,
            lambda folder: write_state(folder / ATTACK_FILE, attack_state(attack)),
        )


def attack_state(attack: Attack) -> dict[str, Tensor]:
    """The tensors of an attack, without the state of its optimizer."""
    return {name: v for name, v in attack.state_dict().items() if isinstance(v, Tensor)}


def load_attack(attack: Attack, beside: Path) -> bool:
    """Load the trigger that a model was trained with, if a file beside the model has it.

    Args:
        attack: Prepared for the images; changed in place.
        beside: The file of the model, or of the trigger.

    Returns:
        Whether there was such a file.

    Raises:
        ValueError: If the file belongs to another attack, or to images of another size.
    """
    path = beside.with_name(ATTACK_FILE)
    if not (attack.has_trigger and path.is_file()):
        return False
    saved = read_checkpoint(path)
    if set(saved.tensors) != set(attack_state(attack)):
        raise ValueError(
            f"Expected {path} to hold the trigger of {type(attack).__name__}, but it holds that of "
            "another attack. Choose the attack that the model was trained with."
        )
    load_into(attack, saved)
    return True


def describe(run: Run, data: ImageData) -> dict[str, Any]:
    """All settings that a backdoored model depends on; the store's key is made of them."""
    settings = run.arguments("data")
    # The content of the folder counts, not its path; triggered images only measure the model.
    for key in ("root", "triggered_root", "placement", "cache", "cache_folder"):
        settings.pop(key, None)
    if settings.get("channels") == 3:
        settings.pop("channels")  # Earlier versions did not describe it, and are to be found.
    network, attack, training = (run.plain(part) for part in ("model", "attack", "training"))
    # Earlier versions described it with the network, and are to be found.
    network["compile"] = training.pop("compile")
    # The head tells models apart only if the attack trains with it.
    head = network.pop("head", None)
    if attack.get("head", "") is None:
        attack["head"] = head
    return {
        "schema": SCHEMA,
        "data": {"name": run.choices["data"], **settings, "content": fingerprint(data)},
        "model": {"name": run.choices["model"], **network, **_own_code(run)},
        "attack": {"name": run.choices["attack"], **attack},
        "training": training,
        "seed": run.cfg.seed,
        "precision": precision_of(run),
        "devices": [str(run.cfg.trainer.devices), run.cfg.trainer.num_nodes],
        "gradients": [
            run.cfg.trainer.accumulate_grad_batches,
            run.cfg.trainer.gradient_clip_val,
            run.cfg.trainer.gradient_clip_algorithm,
            run.cfg.trainer.limit_train_batches,
        ],
    }


def _own_code(run: Run) -> dict[str, str]:
    """A digest of the file that defines the user's own class, because its code makes the model."""
    module = inspect.getmodule(located(run.cfg.model))
    if module is None or module.__name__.split(".")[0] == __name__.split(".")[0]:
        return {}
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        return {}
    return {"code": hashlib.sha256(source.encode()).hexdigest()[:16]}


def fingerprint(data: ImageData) -> str:
    """A digest of the labels and of up to 2,048 of the images, evenly spread."""
    digest = hashlib.sha256(repr(data.classes).encode())
    for rows in (data.train, data.test):
        step = max(1, len(rows) // 2048)
        for tensor in (rows.labels, rows.images[::step]):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.flatten().numpy().data)
    return digest.hexdigest()[:16]


def _as_text(value: Any) -> Any:
    """Lists and dictionaries as JSON text; only the user's own classes take such arguments."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def make_card(run: Run, source: Source, attack: Attack) -> ModelCard:
    """Describe the network, for the files that hold it."""
    data = source.load()
    return ModelCard(
        model={
            "name": run.choices["model"],
            "arguments": {k: _as_text(v) for k, v in network_arguments(run).items()},
        },
        num_classes=data.num_classes,
        classes=data.classes,
        image_size=data.image_shape[-1],
        mean=data.mean,
        std=data.std,
        attack={"name": run.choices["attack"], **run.arguments("attack")}
        if attack.has_trigger
        else None,
        head=run.head,
    )
