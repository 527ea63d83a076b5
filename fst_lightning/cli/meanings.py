"""What the keys of a configuration mean, for ``--help``.

The comments in the YAML files say it, or else the docstring of what the keys are arguments of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fst_lightning.annotations import argument_meanings
from fst_lightning.configuration import conf_folder, unused_groups

_KEY = re.compile(
    r"(?P<indent> *)(?P<name>[A-Za-z_]\w*):"
    r"""( ("[^"]*"|'[^']*'|[^#"'])*)?"""
    r"(#\s*(?P<says>.*))?$"
)
_COMMENT = re.compile(r"\s*#\s*(?P<says>.*)$")
_TITLE = "== Keys and their values =="
_COLUMN = 36


def with_meanings(text: str, task: str, choices: Mapping[str, str]) -> str:
    """Write the meaning of each key beside its value, and that of a part above it.

    Args:
        text: what ``--help`` prints, with the configuration as YAML after a title.
        task: ``train`` or ``purify``.
        choices: the option that was chosen of every group.
    """
    head, title, keys = text.partition(_TITLE)
    head = "".join(line for line in head.splitlines(True) if not line.startswith("recipe/"))
    meanings, unused = _meanings(task, choices), unused_groups(task)
    lines, path, part = [], _Path(), ""
    documented: dict[str, str] = {}
    for line in keys.splitlines():
        key = path.enter(line)
        part = key.partition(".")[0] if key else part
        if part in unused and line:
            continue
        if key and key.endswith("._target_"):
            documented = argument_meanings(line.partition(": ")[2])
        elif key and "." not in key:
            documented = {}
        says = key and (meanings.get(key) or documented.get(key.rpartition(".")[2]))
        if says and line.endswith(":"):
            lines += [f"{line[: len(line) - len(line.lstrip())]}# {says}", line]
        else:
            lines.append(f"{line.ljust(_COLUMN)} # {says}" if says else line)
    return head + title + "\n".join(lines)


def _meanings(task: str, choices: Mapping[str, str]) -> dict[str, str]:
    root = conf_folder()
    found = key_comments(root / f"{task}.yaml")
    del found[""]  # stands in the head of the help
    for group, option in choices.items():
        # An option may build on the default one, whose comments then count.
        for name in ("default", option):
            file = root / group / f"{name}.yaml"
            if file.is_file():
                comments, part = key_comments(file), group.replace("/", ".")
                found[part] = comments.pop("", "") or found.get(part, "")
                found |= {f"{part}.{key}": says for key, says in comments.items()}
    return found


def key_comments(file: Path) -> dict[str, str]:
    """The comment of each dotted key, and under "" the comment at the head of the file.

    A comment stands behind a key, or in the lines above it.

    Args:
        file: A YAML file of the configuration.
    """
    found: dict[str, str] = {}
    path, above, head = _Path(), list[str](), True
    for line in file.read_text(encoding="utf-8").splitlines():
        comment = _COMMENT.fullmatch(line)
        if comment and comment["says"].startswith("@package"):
            continue  # for Hydra
        if comment:
            above.append(comment["says"])
            continue
        if head:
            found[""], above, head = above[0] if above else "", [], False
        key, match = path.enter(line), _KEY.fullmatch(line)
        if key and match:
            says = match["says"] or " ".join(above)
            if says:
                found[key] = says
        above = []
    return found


class _Path:
    """Follows the dotted name of a key through the lines of a YAML file, by their indentation."""

    def __init__(self) -> None:
        self._open: list[tuple[int, str]] = []

    def enter(self, line: str) -> str | None:
        """The dotted name of the key in a line; None for a line without one."""
        match = _KEY.fullmatch(line)
        if match is None:
            return None
        indent = len(match["indent"])
        self._open = [entry for entry in self._open if entry[0] < indent]
        self._open.append((indent, match["name"]))
        return ".".join(name for _, name in self._open)
