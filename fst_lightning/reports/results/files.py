"""Write files whole or not at all; read results that may be broken."""

import contextlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from fst_lightning.reports.results.schema import validate
from fst_lightning.text_files import read_text

_ODD = re.compile(r"[^\n -~]+")  # what may have to be escaped


class Reading(NamedTuple):
    """What came of reading a results.json: exactly one of the two is None.

    Attributes:
        results: the validated content.
        error: one line that says why there is none.
    """

    results: dict[str, Any] | None
    error: str | None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write a UTF-8 file so that nobody ever sees half of it.

    Bytes of a file name that are no UTF-8 (lone surrogates) are written as `\udc80`, which JSON
    reads back as they were.

    Args:
        path: the file; its folder is made where there is none.
        text: its content, with "\n" for line ends.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, for a rename is atomic inside one file system only; opened like any
    # other file, for `tempfile` would hide the result from everybody but its owner.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # on a disk that has become read-only
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # Of what was written into it, the system names no file.
        raise


def write_json(path: str | os.PathLike[str], data: object) -> None:
    """Write JSON atomically: UTF-8, indented, in the order of the keys.

    Args:
        path: the file; its folder is made where there is none.
        data: plain values. NaN and infinities are no JSON: pass None.

    Raises:
        ValueError: If a number is not finite. An older file is left as it was.
    """
    write_text(path, json_text(data) + "\n")


def json_text(data: object) -> str:
    """Write JSON in which no character controls a terminal or turns the direction of writing.

    Args:
        data: Plain values.

    Raises:
        ValueError: If a number is not finite.
    """
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    return _ODD.sub(_escaped, text)  # Such characters occur only inside of texts.


def _escaped(odd: re.Match[str]) -> str:
    return "".join(
        letter if letter == "\n" or letter.isprintable() else json.dumps(letter)[1:-1]
        for letter in odd[0]
    )


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read strict JSON.

    Raises:
        OSError: If there is no such file, or it can't be read, is no regular one or too long.
        ValueError: If it holds no JSON, or NaN or Infinity, which JSON has not.
    """
    try:
        return json.loads(read_text(path), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("too deeply nested") from error


def read_results(path: str | os.PathLike[str]) -> Reading:
    """Read and check a results.json. A broken file is an answer, not an exception.

    Args:
        path: the file.

    Returns:
        The results, or a line that says what is wrong with the file.
    """
    try:
        results = read_json(path)
        validate(results)
    except OSError as error:
        return Reading(None, f"cannot be read: {error.strerror or error}")
    except json.JSONDecodeError as error:
        return Reading(None, f"is no JSON: {error}")
    except UnicodeDecodeError:
        return Reading(None, "is no UTF-8 text")
    except ValueError as error:
        return Reading(None, f"is not valid: {error}")
    return Reading(results, None)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
