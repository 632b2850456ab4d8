"""Which versions are at work. Nothing is imported to find out, least of all torch."""

import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from app.services.inspection.findings import Finding, fail, ok, warn

PYTHON_MIN = (3, 11)
# Before this, workers could stay deaf after the broker had been restarted.
BROKER_CLIENT_MIN = (5, 7)

_BROKER_CLIENTS = ("celery", "kombu")
_MACHINE_LEARNING = ("torch", "transformers", "peft")


def check_versions() -> Iterator[Finding]:
    """Look at Python and our own version."""
    found = f"tunesmith {version('tunesmith')}, Python {platform.python_version()}"
    if sys.version_info[:2] < PYTHON_MIN:
        yield fail("versions", found, "Install Python 3.11 or newer.")
        return
    yield ok("versions", found)


def check_packages() -> Iterator[Finding]:
    """Look at the packages whose version matters most."""
    found = {name: _version(name) for name in (*_BROKER_CLIENTS, *_MACHINE_LEARNING)}
    present = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    old = [name for name in _BROKER_CLIENTS if _numbers(found[name]) < BROKER_CLIENT_MIN]
    if old:
        advice = "Install celery and kombu 5.7 or newer: pip install -c constraints.txt -e ."
        yield warn("packages", present, advice)
        return
    absent = [name for name in _MACHINE_LEARNING if found[name] is None]
    without = f"; without {', '.join(absent)} this host runs the API only" if absent else ""
    yield ok("packages", present + without)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text or "")[:2])
