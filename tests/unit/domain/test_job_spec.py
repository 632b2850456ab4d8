import msgspec

from app.domain.job_spec import (
    AdapterRef,
    AdapterSpec,
    DatasetRef,
    Hyperparameters,
    JobSpec,
    LoraSpec,
)


def test_a_spec_survives_the_trip_through_its_row() -> None:
    spec = JobSpec(
        job_id="ftjob-1",
        base_model="base",
        method="supervised",
        training_file=DatasetRef("file-1", "files/file-1", "0" * 64, 12),
        validation_file=None,
        start_from=AdapterRef("ft:base:acme::1", "jobs/ftjob-0/e1/step-3/adapter"),
        seed=2**31 - 1,
        hyperparameters=Hyperparameters(
            num_epochs=3, batch_size=4, learning_rate=0.1 + 0.2, max_length_tokens=512
        ),
        adapter=AdapterSpec.of_lora(LoraSpec(r=8, target_modules=("q_proj",))),
    )
    assert JobSpec.from_json(spec.to_json()) == spec


def test_a_spec_from_before_adapters_were_uploaded_is_read() -> None:
    trained = AdapterRef("ft:base:acme::1", "jobs/ftjob-0/e1/step-3/adapter")
    text = msgspec.json.encode({"model": trained.model, "storage_prefix": trained.storage_prefix})
    assert msgspec.json.decode(text, type=AdapterRef) == trained
