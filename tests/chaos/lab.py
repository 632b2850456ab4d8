"""What all experiments of a run share: the toy base, the references, one stream of chance."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from tests.chaos.backends import SQLITE, Backends, Kind, running_backends
from tests.chaos.evidence import gather, recipe_of
from tests.chaos.installation import Installation, Plan
from tests.chaos.toy import build_toy_base
from tests.chaos.workload import Recipe, Workload
from tests.support.polling import eventually


@dataclass
class Lab:
    """Makes installations on the toy base and knows what undisturbed jobs come to.

    Attributes:
        root: everything that the run writes lies below it.
        seed: of the run.
        references: SHA-256 of the weights of each recipe that was asked for.
        keep: what was written stays when the lab is closed, for whoever looks into a violation.
    """

    root: Path
    seed: int
    base: dict[str, str]
    keep: bool = False
    references: dict[Recipe, str] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def chance(self, experiment: str) -> Random:
        """Return the random numbers of one experiment, the same in every run of this seed."""
        return Random(f"{self.seed} {experiment}")

    @contextmanager
    def installation(
        self, kind: Kind, plan: Plan, *, backends: Backends | None = None
    ) -> Iterator[Installation]:
        """Make an installation; its processes end with the block, however that ends."""
        directory = self.root / f"{next(self._numbers):02}"
        if backends is not None:
            yield from self._open(directory, backends, plan)
            return
        with running_backends(kind) as own:
            yield from self._open(directory, own, plan)

    def refer(self, recipes: Iterable[Recipe]) -> None:
        """Run each recipe once, undisturbed, unless that was done before."""
        missing = sorted(set(recipes) - self.references.keys())
        if not missing:
            return
        with self.installation(SQLITE, Plan(workers=2)) as installation:
            installation.start()
            workload = Workload(installation)
            workload.submit_all(missing)
            eventually(
                lambda: installation.count_unfinished() == 0,
                what=f"the references are there; see {installation.directory}",
                within_seconds=60 + 20 * len(missing),
            )
            evidence = gather(installation, list(workload.accepted))
        for one in evidence.published:
            assert one.weights_sha256 is not None
            recipe = recipe_of(evidence.jobs[one.adapter.job_id])
            self.references[recipe] = one.weights_sha256
        assert self.references.keys() >= set(missing), [job.error for job in evidence.jobs.values()]

    def _open(self, directory: Path, backends: Backends, plan: Plan) -> Iterator[Installation]:
        installation = Installation(directory, backends, self.base, plan)
        try:
            yield installation
        finally:
            installation.kill_everything()


@contextmanager
def open_lab(seed: int) -> Iterator[Lab]:
    """Make a lab in a temporary directory, which stays if something in it must be looked into."""
    root = Path(tempfile.mkdtemp(prefix="tunesmith-chaos-"))
    catalogue, models_dir = build_toy_base(root)
    lab = Lab(root, seed, {"MODELS_CATALOGUE": str(catalogue), "MODELS_DIR": str(models_dir)})
    yield lab
    if not lab.keep:
        shutil.rmtree(root, ignore_errors=True)
