"""How well the detectors tell backdoored networks from clean ones: trains both, and scans them.

    python -m benchmarks.detection scan digits.jsonl            # hours of one core
    python -m benchmarks.detection scan digits.jsonl --limit 8 --detectors mm_bd,universal
    python -m benchmarks.detection table digits.jsonl           # the tables of docs/detection.md

Each network is trained, or taken from the store, scanned by every detector as ``detect.py`` does,
and kept as one line of JSON. What is there already is not done again, so that a stopped study goes
on, and further detectors can be added. Clean and backdoored networks take turns, and so do the
halves: half of the seeds and half of the attacks are for *development* (thresholds are chosen on
them), the others for the *report*.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import processor
from benchmarks.records import record_of
from fst_lightning.commit import code_commit

Half = Literal["development", "report"]

DETECTORS = ("head_weights", "mm_bd", "universal", "noise_response", "nc", "bti_dbf")
RECIPE = ("data=digits", "model=small_resnet", "training.max_epochs=10")
"""Ten epochs reach the clean accuracy of the usual twenty."""

IMPLANTED = 0.8
"""The attack success rate from which a backdoored network counts."""

ATTACKS: dict[Half, dict[str, tuple[tuple[str, ...], ...]]] = {
    "development": {
        "badnets": (
            ("attack=badnets", "attack.poison_ratio=0.1"),
            ("attack=badnets", "attack.poison_ratio=0.07"),
        ),
        "blended": (
            ("attack=blended", "attack.poison_ratio=0.02"),
            ("attack=blended", "attack.poison_ratio=0.01"),
        ),
        "wanet": (("attack=wanet", "attack.poison_ratio=0.2", "attack.strength=4"),),
        "all_to_all": (
            ("attack=blended", "attack.poison_ratio=0.2", "attack.label_map=all_to_all"),
        ),
    },
    "report": {
        "ssba": (
            ("attack=ssba", "attack.poison_ratio=0.05"),
            ("attack=ssba", "attack.poison_ratio=0.02"),
        ),
        "adaptive_blend": (
            ("attack=adaptive_blend", "attack.poison_ratio=0.03", "attack.cover_ratio=0.01"),
            ("attack=adaptive_blend", "attack.poison_ratio=0.01", "attack.cover_ratio=0.01"),
        ),
        "input_aware": (("attack=input_aware", "attack.poison_ratio=0.15"),),
        "sig": (("attack=sig", "attack.poison_ratio=0.09", "attack.delta=160"),),
    },
}
"""By half, the attacks and the settings of each, which take turns."""


@dataclass(frozen=True)
class Case:
    """One network of the study.

    Attributes:
        half: What it is for.
        label: The attack as the tables call it; ``none`` for a clean network.
        attack: Overrides that choose it.
        seed: Of the network and the attack.
    """

    half: Half
    label: str
    attack: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """Tells the networks apart: ``badnets_0.05-0``."""
        ratio = [line.partition("=")[2] for line in self.attack if "poison_ratio" in line]
        return "_".join((self.label, *ratio)) + f"-{self.seed}"


def cases() -> Iterator[Case]:
    """All networks, in an order of which every beginning is balanced, without an end.

    Even seeds are for development, odd seeds for the report, of clean and backdoored networks.
    """
    halves: tuple[Half, Half] = ("development", "report")
    backdoored = {half: cycle(_rounds(ATTACKS[half])) for half in halves}
    number = 0
    while True:
        for offset, half in enumerate(halves):
            seed = 2 * number + offset
            label, attack = next(backdoored[half])
            yield Case(half, "none", ("attack=none",), seed)
            yield Case(half, label, attack, seed)
        number += 1


def _rounds(attacks: dict[str, tuple[tuple[str, ...], ...]]) -> list[tuple[str, tuple[str, ...]]]:
    """Attacks in turn, each with its next setting, until all have had all of theirs."""
    longest = max(map(len, attacks.values()))
    turns = [
        [(label, settings[turn % len(settings)]) for label, settings in attacks.items()]
        for turn in range(longest)
    ]
    return list(chain.from_iterable(turns))


def scan(
    records: Path, work: Path, store: Path, limit: int, detectors: Sequence[str] = DETECTORS
) -> None:
    """Train the networks, and scan each with those detectors that have not scanned it yet.

    Args:
        records: One line of JSON per network and scan, to which lines are added.
        work: Folder of the runs.
        store: Of the trained networks.
        limit: How many networks the study has.
        detectors: Their names.
    """
    known = read(records) if records.exists() else {}
    records.parent.mkdir(parents=True, exist_ok=True)
    for case in islice(cases(), limit):
        done = known[case.name]["detectors"] if case.name in known else {}
        missing = [name for name in detectors if name not in done]
        if missing:
            line = json.dumps(record(case, work / case.name, store, missing))
            with records.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def record(case: Case, folder: Path, store: Path, detectors: Sequence[str]) -> dict[str, Any]:
    """Train and scan one network."""
    overrides = [
        f"detector=[{','.join(detectors)}]",
        *RECIPE,
        *case.attack,
        f"seed={case.seed}",
        f"paths.store={store}",
        "trainer=cpu",
        "trainer.limit_val_batches=0",  # nobody looks between the epochs
        "report.enabled=false",
    ]
    results = run_detect(overrides, folder)
    full = record_of(
        results,
        commit=code_commit().commit or "",
        hardware=f"one thread of an {processor()}",
        date=datetime.now(UTC).date().isoformat(),
    )
    kept = ("command", "commit", "date", "hardware", "seed", "before")
    return {
        "name": case.name,
        "half": case.half,
        "label": case.label,
        "poison_ratio": full["attack"].get("poison_ratio"),
        "target_label": full["attack"]["target_label"] if case.label != "none" else None,
        **{key: full[key] for key in kept},
        "detectors": full["detection"]["before"]["detectors"],
    }


def run_detect(overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run ``detect.py`` with these overrides in this process; a process each would cost seconds."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from fst_lightning.configuration import conf_folder, drop_unused
    from fst_lightning.pipelines import Run, run_pipeline

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("detect", list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(cfg)
        choices = dict(cfg.hydra.runtime.choices)
        del cfg["hydra"]
    drop_unused(cfg)
    return run_pipeline(Run(cfg, choices, list(overrides), folder))


def read(records: Path) -> dict[str, dict[str, Any]]:
    """Read a study: by name, each network with what all of its scans found, and their commits."""
    networks: dict[str, dict[str, Any]] = {}
    for line in records.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        known = networks.setdefault(found["name"], {**found, "commits": []})
        known["detectors"] = known["detectors"] | found["detectors"]
        known["commits"].append(found["commit"])
    return networks


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and scan or tabulate."""
    parser = ArgumentParser(description="How well the detectors work.")
    commands = parser.add_subparsers(dest="command", required=True)
    scanning = commands.add_parser("scan", help="train and scan networks")
    scanning.add_argument("records", type=Path, help="file of JSON lines, which is continued")
    scanning.add_argument("--limit", type=int, default=120, help="networks of the study")
    scanning.add_argument("--detectors", default=",".join(DETECTORS), help="names, with commas")
    scanning.add_argument("--work", type=Path, default=Path("outputs/detection"))
    scanning.add_argument("--store", type=Path, default=Path("store"))
    given = parser.parse_args(arguments)
    names = given.detectors.split(",")
    scan(given.records, given.work, given.store, given.limit, names)


if __name__ == "__main__":
    main()
