"""The flags of a command: what stands on the command line besides ``key=value``."""

from __future__ import annotations

import contextlib
import io
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser

from fst_lightning.configuration import conf_folder
from fst_lightning.version import __version__

_COMMANDS = {
    "run": "--run",
    "multirun": "-m",
    "cfg": "--cfg",
    "info": "--info",
    "shell_completion": "-sc",
}
_SHELLS = ("bash", "zsh", "fish")


def read_flags(arguments: Sequence[str]) -> Namespace:
    """Parse a command line as Hydra does, with this project's ``--version``.

    Args:
        arguments: of the command line.

    Raises:
        ValueError: one line that says which flag can't be used, and what to do.
        SystemExit: after ``--version``.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            options, unknown = _parser().parse_known_args(arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(
            f"{said.getvalue().rpartition('error: ')[2].strip()}; see --help."
        ) from None
    problem = _problem(options, unknown)
    if problem is not None:
        raise ValueError(problem)
    return options


def sweeps(arguments: Sequence[str]) -> bool:
    """Whether a command starts several jobs: with ``-m``, or with ``hydra.mode=MULTIRUN``.

    Example:
        >>> sweeps(["-m", "seed=0,1"]), sweeps(["hydra.mode=MULTIRUN"]), sweeps(["seed=0"])
        (True, True, False)
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
            options, _ = _parser().parse_known_args(arguments)
    except SystemExit:  # after --version, or for what `read_flags` explains
        return False
    modes = [line.partition("=")[2] for line in options.overrides if _sets_mode(line)]
    return bool(options.multirun) or (bool(modes) and modes[-1].strip("'\"") == "MULTIRUN")


def _sets_mode(override: str) -> bool:
    return override.lstrip("+").partition("=")[0] == "hydra.mode"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(add_help=False, parents=[get_args_parser()], conflict_handler="resolve")
    parser.add_argument("--version", action="version", version=f"fst_lightning {__version__}")
    return parser


def _problem(options: Namespace, unknown: Sequence[str]) -> str | None:
    if unknown:
        found = " ".join(unknown)
        return f"{found}: not understood. Flags such as -m stand before or after all key=value."
    if options.experimental_rerun is not None:
        return (
            f"--experimental-rerun={options.experimental_rerun}: it reads a pickle, which can run "
            "code. Repeat the command of the run: its .hydra/overrides.yaml lists the overrides."
        )
    given = [flag for name, flag in _COMMANDS.items() if getattr(options, name)]
    if len(given) > 1:
        return f"{' '.join(given)}: only one of them goes at a time."
    if options.resolve and not (options.cfg or options.help):
        return "--resolve: it goes with --cfg job, which prints the configuration."
    if options.package is not None and not options.cfg:
        return f"--package={options.package}: it goes with --cfg job, of which it prints a part."
    return _completion_problem(options) or _configuration_problem(options)


def _completion_problem(options: Namespace) -> str | None:
    if not options.shell_completion:
        return None
    line = " ".join(options.overrides)
    command, _, shell = line.partition("=")
    if command not in ("install", "uninstall", "query") or shell not in _SHELLS:
        valid = ", ".join(f"install={name}" for name in _SHELLS)
        return f"-sc {line}: expected one of {valid}, or uninstall= in place of install=."
    if command == "query" and "COMP_LINE" not in os.environ:
        return f"-sc {line}: this is for the shell, which says in COMP_LINE what was typed."
    return None


def _configuration_problem(options: Namespace) -> str | None:
    """What is wrong with where another configuration is said to be."""
    for name in ("config_dir", "config_path"):
        folder = getattr(options, name)
        if folder and "://" not in folder and not Path(folder).is_dir():
            return f"--{name.replace('_', '-')}={folder}: there is no such folder."
    if options.config_path and "://" not in options.config_path:
        folder = Path(options.config_path)
        if not folder.is_absolute():
            return (
                f"-cp {folder}: a relative --config-path would start at the folder of this "
                f"package's code. Say "
                f"--config-path={folder.resolve()}, or add options with --config-dir={folder}."
            )
    file = options.config_name
    if file and not (options.config_dir or options.config_path):
        known = sorted(path.stem for path in conf_folder().glob("*.yaml"))
        if file.removesuffix(".yaml") not in known:
            valid = ", ".join(known)
            return f"--config-name={file}: no such file. Valid: {valid}; or say --config-dir."
    return None
