import json
import subprocess
import sys

import pytest

from tests.support.service import REPOSITORY

MAX_MODULES = 1_230

_IMPORT = """
import json, sys
import {module}
print(json.dumps(sorted(sys.modules)))
"""

# What only the side of the house with the devices may load.
HEAVY = {"torch", "transformers", "peft", "safetensors", "tokenizers", "numpy"}


def imported(module: str) -> list[str]:
    """Return the names of all modules that are loaded once this one is."""
    result = subprocess.run(
        [sys.executable, "-c", _IMPORT.format(module=module)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded: list[str] = json.loads(result.stdout)
    return loaded


def packages(modules: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("module", ["app.main", "app.cli", "worker.__main__", "worker.supervisor"])
def test_torch_stays_out(module: str) -> None:
    assert HEAVY.isdisjoint(packages(imported(module)))


def test_what_is_heavy_would_be_seen() -> None:
    """The negative control of the test above."""
    assert {"safetensors", "numpy"} <= packages(imported("safetensors.numpy"))


def test_the_api_loads_few_modules() -> None:
    """Most of its start goes into them, and unlike seconds they are the same everywhere."""
    assert len(imported("app.main")) < MAX_MODULES
