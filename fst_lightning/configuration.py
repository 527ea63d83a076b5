"""Where the YAML files are, and what can be chosen from them."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf


def conf_folder() -> Path:
    """The folder of the YAML files: inside an installed package, beside it in a checkout.

    Raises:
        FileNotFoundError: where neither has it.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "purify.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"Expected the configuration in {package / 'conf'} or {package.parent / 'conf'}, but found "
        "it in neither; install the package again."
    )


def groups() -> dict[str, list[str]]:
    """The replaceable parts and their options, as folders and files of the configuration."""
    root = conf_folder()
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name != "hydra" and any(folder.glob("*.yaml"))
    }


def groups_of(task: str) -> list[str]:
    """The groups that a task chooses from, in the order of its defaults.

    Args:
        task: ``train`` or ``purify``.
    """
    defaults = OmegaConf.load(conf_folder() / f"{task}.yaml").defaults
    named = [str(name) for entry in defaults if OmegaConf.is_dict(entry) for name in entry]
    known = groups()
    return [name for name in named if name in known]
