"""Jobs of a few seconds, each with a twin that nothing disturbed."""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.chaos.installation import Installation
from tests.chaos.toy import TOY
from tests.support.jobs import support_desk

BATCH_SIZE = 2
_RETRY_SECONDS = 0.2


@dataclass(frozen=True, order=True)
class Recipe:
    """What a job's adapter follows from, bit for bit."""

    seed: int
    records: int = 32
    epochs: int = 2

    @property
    def steps(self) -> int:
        return self.records // BATCH_SIZE * self.epochs

    def body(self, training_file: str) -> dict[str, Any]:
        """Return the request for a job."""
        hyperparameters = {"n_epochs": self.epochs, "batch_size": BATCH_SIZE}
        return {
            "model": TOY,
            "training_file": training_file,
            "seed": self.seed,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            "tunesmith": {"adapter": {"r": 4, "alpha": 8}},
            # So that the checker knows the twin of any job, also of one whose answer was lost.
            "metadata": {"records": str(self.records), "epochs": str(self.epochs)},
        }


SEEDS = (11, 12, 13, 14, 15)


@dataclass
class Workload:
    """Submits jobs to one installation and remembers which were accepted.

    Attributes:
        accepted: the moment at which each job was answered with success.
        refused: what was answered otherwise, or not at all, before it was asked again.
    """

    installation: Installation
    accepted: dict[str, float] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    _files: dict[int, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def request(self, recipe: Recipe) -> dict[str, Any]:
        """Return the request for a job, whose file is uploaded at its first use."""
        with self._lock:
            file_id = self._files.get(recipe.records) or self._upload(recipe.records)
            self._files[recipe.records] = file_id
        return recipe.body(file_id)

    def submit(self, recipe: Recipe) -> str:
        """Create a job, asking again for as long as the API is away, and return its id."""
        answer = self._post("/v1/fine_tuning/jobs", json=self.request(recipe))
        job_id = str(answer["id"])
        self.accepted[job_id] = time.monotonic()
        return job_id

    def submit_all(self, recipes: Iterable[Recipe]) -> list[str]:
        return [self.submit(recipe) for recipe in recipes]

    def act(self, job_id: str, what: str) -> httpx.Response:
        """Post `cancel`, `pause` or `resume`."""
        with self.installation.service.http(self.installation.service.key) as client:
            return client.post(f"/v1/fine_tuning/jobs/{job_id}/{what}")

    def _upload(self, records: int) -> str:
        content = support_desk("train", records)
        answer = self._post(
            "/v1/files",
            data={"purpose": "fine-tune"},
            files={"file": ("train.jsonl", content)},
        )
        return str(answer["id"])

    def _post(self, path: str, **request: Any) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while True:
            try:
                with self.installation.service.http(self.installation.service.key) as client:
                    response = client.post(path, **request)
                if response.status_code == 200:
                    answer: dict[str, Any] = response.json()
                    return answer
                seen = f"{response.status_code} {response.text}"
                assert response.status_code == 503, seen
            except httpx.TransportError as error:
                seen = repr(error)
            self.refused.append(f"POST {path}: {seen}")
            assert time.monotonic() < deadline, f"POST {path} for two minutes: {seen}"
            time.sleep(_RETRY_SECONDS)
