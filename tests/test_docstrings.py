"""The examples in the docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fst_lightning

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fst_lightning.__path__, "fst_lightning.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
