"""A resumed run equals an uninterrupted one, and a damaged checkpoint is never resumed from."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app.domain.errors import TrainingFailed
from app.domain.job_spec import AdapterRef, JobSpec, LoraSpec
from app.storage.local import LocalStorage
from tests.training.conftest import SHORT_CHATS, RunAttempt, job_spec, put_records
from worker.training.checkpoints import read_checkpoint
from worker.training.manifest import BaseModelRef
from worker.trunk.peft_format import load_adapter

WITH_DROPOUT = LoraSpec(r=4, alpha=8, dropout=0.1)


@pytest.fixture
def spec(storage: LocalStorage) -> JobSpec:
    """Three steps an epoch, two epochs, with all that is random."""
    file = put_records(storage, "train", SHORT_CHATS)
    return job_spec(file, file, adapter=WITH_DROPOUT, num_epochs=2, weight_decay=0.01)


def files_below(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(
    run_attempt: RunAttempt, storage: LocalStorage, spec: JobSpec, stop_at: int
) -> None:
    whole = run_attempt(spec)
    first = run_attempt(spec, lease=2, answers={("step", stop_at): "stop"})
    assert first.last["type"] == "stopped"
    assert first.last["step"] == stop_at

    second = run_attempt(spec, lease=3, resume_from=first.last["prefix"])

    assert second.of_type("prepared")[0]["start_step"] == stop_at
    assert [m["step"] for m in second.of_type("step")] == list(range(stop_at + 1, 7))
    # Optimizer, dropout, metrics, adapter: all of it, to the last bit.
    assert files_below(storage.directory(second.last["prefix"])) == files_below(
        storage.directory(whole.last["prefix"])
    )
    assert second.last["metrics_csv"] == whole.last["metrics_csv"]
    assert second.last["trained_tokens"] == whole.last["trained_tokens"]
    assert second.last["manifest_sha256"] == whole.last["manifest_sha256"]


def test_a_killed_run_resumes_from_its_periodic_checkpoint(
    run_attempt: RunAttempt, storage: LocalStorage, spec: JobSpec
) -> None:
    whole = run_attempt(spec, checkpoint_interval_seconds=0.0)
    periodic = {m["step"]: m for m in whole.of_type("checkpoint")}
    assert {step: m["epoch_end"] for step, m in periodic.items()} == {
        1: False, 2: False, 3: True, 4: False, 5: False, 6: True
    }  # fmt: skip

    # What a run killed after its second step left behind.
    second = run_attempt(spec, lease=2, resume_from=periodic[2]["prefix"])

    assert files_below(storage.directory(second.last["prefix"])) == files_below(
        storage.directory(whole.last["prefix"])
    )


def test_a_resumed_run_equals_an_uninterrupted_one_on_the_real_model(
    run_attempt: RunAttempt, storage: LocalStorage, base: BaseModelRef
) -> None:
    file = put_records(storage, "train", SHORT_CHATS[:3])
    spec = job_spec(file, adapter=WITH_DROPOUT, batch_size=1)
    whole = run_attempt(spec, base=base)
    first = run_attempt(spec, base=base, lease=2, answers={("step", 1): "stop"})

    second = run_attempt(spec, base=base, lease=3, resume_from=first.last["prefix"])

    assert files_below(storage.directory(second.last["prefix"])) == files_below(
        storage.directory(whole.last["prefix"])
    )


def test_negative_control_another_seed_gives_other_weights(
    run_attempt: RunAttempt, storage: LocalStorage, spec: JobSpec
) -> None:
    prefixes = [
        run_attempt(replace(spec, seed=seed, job_id=f"job-{seed}")).last["prefix"]
        for seed in (1, 2)
    ]

    first, second = (files_below(storage.directory(prefix)) for prefix in prefixes)

    assert first["adapter/adapter_model.safetensors"] != second["adapter/adapter_model.safetensors"]


def test_resuming_from_the_last_step_only_finishes(run_attempt: RunAttempt, spec: JobSpec) -> None:
    whole = run_attempt(spec)

    again = run_attempt(spec, lease=2, resume_from=whole.last["prefix"])

    assert [message["type"] for message in again.messages] == ["prepared", "finished"]
    assert again.last["prefix"] == whole.last["prefix"]
    assert again.last["metrics_csv"] == whole.last["metrics_csv"]


def test_the_adapter_directory_stands_alone(
    run_attempt: RunAttempt, storage: LocalStorage, spec: JobSpec, tiny_base: BaseModelRef
) -> None:
    directory = storage.directory(run_attempt(spec).last["prefix"])

    manifest = json.loads((directory / "adapter/manifest.json").read_bytes())

    assert sorted(path.name for path in (directory / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert manifest["base_model"] == {
        "id": tiny_base.id,
        "name_or_path": tiny_base.name_or_path,
        "revision": tiny_base.revision,
    }
    assert manifest["training_file"]["sha256"] == spec.training_file.sha256
    assert manifest["spec"] == json.loads(spec.to_json())
    assert not list(directory.parent.parent.rglob("tmp*"))


def test_a_job_can_start_from_another_jobs_adapter(
    run_attempt: RunAttempt, storage: LocalStorage, spec: JobSpec
) -> None:
    first_prefix = f"{run_attempt(spec).last['prefix']}/adapter"
    start = AdapterRef("ft:first", first_prefix)

    # A rate this small leaves the weights where they are.
    spec = replace(
        spec,
        job_id="second",
        start_from=start,
        hyperparameters=replace(spec.hyperparameters, learning_rate=1e-12, weight_decay=0.0),
    )
    second = run_attempt(spec)

    before = load_adapter(storage.directory(first_prefix))
    after = load_adapter(storage.directory(second.last["prefix"]) / "adapter")
    for path, pair in before.weights.items():
        assert (after.weights[path].b - pair.b).abs().max() < 1e-8
        assert pair.b.abs().max() > 1e-6


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: _flip_a_byte(d / "state/optimizer.safetensors"),
        lambda d: _flip_a_byte(d / "state/state.json"),
        lambda d: _flip_a_byte(d / "adapter/adapter_model.safetensors"),
        lambda d: _flip_a_byte(d / "files.json"),
        lambda d: (d / "state/rng.safetensors").unlink(),
        lambda d: (d / "files.json").unlink(),
        lambda d: (d / "adapter/extra").write_bytes(b"x"),
        lambda d: (d / "adapter/adapter_config.json").write_bytes(b""),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    run_attempt: RunAttempt, storage: LocalStorage, spec: JobSpec, damage: Callable[[Path], None]
) -> None:
    prefix = run_attempt(spec, answers={("step", 1): "stop"}).last["prefix"]
    read_checkpoint(storage, prefix, spec)
    damage(storage.directory(prefix))

    with pytest.raises(TrainingFailed) as error:
        run_attempt(spec, lease=2, resume_from=prefix)

    assert error.value.code == "checkpoint_corrupt"


def test_a_checkpoint_of_another_run_is_refused(run_attempt: RunAttempt, spec: JobSpec) -> None:
    prefix = run_attempt(spec, answers={("step", 1): "stop"}).last["prefix"]

    for other, resume_from in ((replace(spec, seed=99), prefix), (spec, "jobs/gone/e1/step-1")):
        with pytest.raises(TrainingFailed) as error:
            run_attempt(other, lease=2, resume_from=resume_from)
        assert error.value.code == "checkpoint_corrupt"
