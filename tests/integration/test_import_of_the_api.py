import json
import subprocess
import sys

import pytest

from tests.support.service import REPOSITORY

MAX_CPU_SECONDS = 2.0

_IMPORT = """
import json, resource, sys
import {module}
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({{
    "modules": sorted({{name.partition(".")[0] for name in sys.modules}}),
    "cpu_seconds": usage.ru_utime + usage.ru_stime,
}}))
"""

# What only the side of the house with the devices may load.
HEAVY = {"torch", "transformers", "peft", "safetensors", "tokenizers", "numpy"}


def imported(module: str) -> dict[str, object]:
    result = subprocess.run(
        [sys.executable, "-c", _IMPORT.format(module=module)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded: dict[str, object] = json.loads(result.stdout)
    return loaded


@pytest.mark.parametrize("module", ["app.main", "app.cli", "worker.__main__", "worker.supervisor"])
def test_torch_stays_out(module: str) -> None:
    modules = imported(module)["modules"]
    assert isinstance(modules, list)
    assert HEAVY.isdisjoint(modules)


def test_what_is_heavy_would_be_seen() -> None:
    """The negative control of the test above."""
    modules = imported("safetensors.numpy")["modules"]
    assert isinstance(modules, list)
    assert {"safetensors", "numpy"} <= set(modules)


def test_the_api_is_imported_in_under_two_seconds() -> None:
    imported("app.main")  # The first run may have to compile.
    seconds = min(float(str(imported("app.main")["cpu_seconds"])) for _ in range(2))
    assert seconds < MAX_CPU_SECONDS
