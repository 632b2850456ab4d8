"""Every experiment, on which installations it runs, at full and at small size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.chaos.backends import POSTGRES, SQLITE, Kind
from tests.chaos.experiments.cancels import CancelsSize, cancels
from tests.chaos.experiments.clocks import ClocksSize, clocks
from tests.chaos.experiments.disks import DisksSize, full_database, full_storage
from tests.chaos.experiments.freezes import FreezesSize, freezes, unfenced
from tests.chaos.experiments.hangs import HangsSize, hangs
from tests.chaos.experiments.kills import KillsSize, kills
from tests.chaos.experiments.orphans import OrphansSize, orphans
from tests.chaos.experiments.outages import OutagesSize, outages
from tests.chaos.experiments.poison import PoisonSize, poison
from tests.chaos.experiments.retries import RetriesSize, retries
from tests.chaos.experiments.rolling import RollingSize, rolling
from tests.chaos.experiments.storms import StormsSize, storms
from tests.chaos.experiments.torn import TornSize, torn
from tests.chaos.lab import Lab
from tests.chaos.outcome import Outcome


@dataclass(frozen=True)
class Experiment:
    """One row of the table: what to call, where, and how much of it.

    Attributes:
        is_quick: small enough for every run of the tests; the others are marked as slow.
    """

    name: str
    run: Callable[[Lab, Kind, Any], Outcome]
    kinds: tuple[Kind, ...]
    full: Any
    quick: Any
    is_quick: bool = True


EXPERIMENTS = (
    Experiment("kills", kills, (SQLITE,), KillsSize(), KillsSize(jobs=2, kills=3, workers=2)),
    Experiment(
        "storms",
        storms,
        (POSTGRES,),
        StormsSize(),
        StormsSize(jobs=4, kills=6, others=6, workers=2),
        is_quick=False,
    ),
    Experiment(
        "freezes",
        freezes,
        (SQLITE, POSTGRES),
        FreezesSize(),
        FreezesSize(freezes=2, takeovers=1, workers=3, epochs=3),
        is_quick=False,
    ),
    Experiment(
        "unfenced",
        unfenced,
        (SQLITE,),
        FreezesSize(freezes=3, takeovers=1),
        FreezesSize(freezes=1, takeovers=1, workers=3, epochs=3),
        is_quick=False,
    ),
    Experiment(
        "orphans",
        orphans,
        (SQLITE,),
        OrphansSize(),
        OrphansSize(wait_seconds=8),
        is_quick=False,
    ),
    Experiment("outages", outages, (POSTGRES,), OutagesSize(), OutagesSize(jobs=6, workers=1)),
    Experiment(
        "poison", poison, (SQLITE,), PoisonSize(), PoisonSize(others=2, workers=1), is_quick=False
    ),
    Experiment("hangs", hangs, (SQLITE,), HangsSize(), HangsSize(jobs=1), is_quick=False),
    Experiment(
        "full-storage",
        full_storage,
        (SQLITE,),
        DisksSize(),
        DisksSize(jobs=1, requests=3),
        is_quick=False,
    ),
    Experiment(
        "full-database",
        full_database,
        (SQLITE,),
        DisksSize(),
        DisksSize(jobs=1, requests=3),
        is_quick=False,
    ),
    Experiment(
        "torn",
        torn,
        (SQLITE,),
        TornSize(),
        TornSize(damages=4, drivers=1, workers=1),
        is_quick=False,
    ),
    Experiment(
        "retries",
        retries,
        (SQLITE, POSTGRES),
        RetriesSize(),
        RetriesSize(posts=60, keys=6, threads=6, kills=2),
    ),
    Experiment(
        "cancels",
        cancels,
        (POSTGRES,),
        CancelsSize(),
        CancelsSize(jobs=8, workers=1),
        is_quick=False,
    ),
    Experiment(
        "rolling", rolling, (POSTGRES,), RollingSize(), RollingSize(2, 2, 1), is_quick=False
    ),
    Experiment(
        "clocks", clocks, (POSTGRES,), ClocksSize(), ClocksSize(jobs=2, freezes=1), is_quick=False
    ),
)
