"""The real base model learns from the records that the project shows itself with."""

import json
from pathlib import Path

from app.domain.job_spec import LoraSpec
from app.storage.local import LocalStorage
from tests.training.conftest import RunAttempt, job_spec, put_records
from worker.training.manifest import BaseModelRef

EXAMPLES = Path(__file__).parents[2] / "examples" / "support-desk" / "train.jsonl"


def test_the_loss_falls_on_real_records(
    run_attempt: RunAttempt, storage: LocalStorage, base: BaseModelRef
) -> None:
    records = [json.loads(line) for line in EXAMPLES.read_text().splitlines()[:2]]
    file = put_records(storage, "train", records)
    spec = job_spec(
        file,
        adapter=LoraSpec(r=8, alpha=16),
        num_epochs=4,
        learning_rate=2e-3,
        scheduler="constant",
    )

    losses = [message["train_loss"] for message in run_attempt(spec, base=base).of_type("step")]

    assert losses[-1] < 0.8 * losses[0]
