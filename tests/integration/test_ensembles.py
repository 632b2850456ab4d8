"""Ensembles in both databases: what may be joined, and that what is needed stays."""

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from app.base_models import load_catalogue
from app.db.database import Database
from app.db.repositories import adapters
from app.db.repositories import ensembles as rows
from app.db.repositories.ensembles import Ensemble
from app.db.repositories.keys import Principal
from app.db.tables import adapters as adapter_table
from app.db.tables import ensemble_members
from app.domain.errors import DomainError, InvalidInput, ModelDamaged, ModelInUse, NotFound
from app.domain.task_routes import CHAT, PREDICTIONS
from app.resources import Resources
from app.services import ensembles, models
from app.services.ensembles import EnsembleRequest
from tests.support.factories import BASE_MODEL, add_adapter, add_project
from tests.support.sweeping import opened

CATALOGUE = load_catalogue(Path("/none"))
TASK = "text-classification"


@pytest.fixture
def resources(database: Database, tmp_path: Path) -> Iterator[Resources]:
    with opened(database, f"filesystem://{tmp_path}/broker", tmp_path) as resources:
        yield resources


@pytest.fixture
def owner(database: Database) -> Principal:
    with database.write() as connection:
        project_id = add_project(connection)
    return Principal("key-1", project_id, "org-1", "acme")


def add_model(
    resources: Resources,
    owner: Principal,
    name: str,
    *,
    task: str = TASK,
    problem: str = "single_label",
    labels: Sequence[str] = ("bad", "good"),
) -> str:
    """Add a fine-tuned model with what its task keeps beside it."""
    with resources.database.write() as connection:
        adapter = add_adapter(connection, owner.project_id, name, task=task)
    scratch = resources.storage.scratch()
    outline = {"problem": problem, "labels": labels}
    (scratch / "task.json").write_text(json.dumps({"task": task, "outline": outline}))
    resources.storage.publish(adapter.storage_prefix, scratch)
    return name


def asking(*names: str, **changes: Any) -> EnsembleRequest:
    values: dict[str, Any] = {
        "models": names,
        "method": "mean_probabilities",
        "weights": None,
        "suffix": None,
        "metadata": None,
    }
    return EnsembleRequest(**values | changes)


def create(resources: Resources, owner: Principal, request: EnsembleRequest) -> Ensemble:
    prepared = ensembles.prepare(resources, owner, request)
    with resources.database.write() as connection:
        return ensembles.add(connection, prepared)


@pytest.fixture
def pair(resources: Resources, owner: Principal) -> list[str]:
    return [add_model(resources, owner, name) for name in ("ft:2", "ft:1")]


def remove(database: Database, owner: Principal, name: str) -> None:
    with database.write() as connection:
        models.remove(connection, CATALOGUE, owner.project_id, name)


def test_an_ensemble_has_a_name_and_keeps_its_members_in_order(
    resources: Resources, owner: Principal, pair: list[str]
) -> None:
    request = asking(*pair, weights=[1.0, 3.0], suffix="both", metadata={"a": "b"})
    made = create(resources, owner, request)
    assert made.model.startswith(f"ft:{BASE_MODEL}:acme:both:")
    assert [(one.model, one.weight) for one in made.members] == [("ft:2", 0.25), ("ft:1", 0.75)]
    assert (made.task, made.metadata) == (TASK, {"a": "b"})
    assert create(resources, owner, request).model != made.model
    with resources.database.write() as connection:
        other = add_project(connection, "other")
        assert rows.get(connection, owner.project_id, made.id) == made
        assert rows.find(connection, owner.project_id, made.model) == made
        assert rows.find(connection, other, made.model) is None
        assert rows.list_all(connection, other) == []
        with pytest.raises(NotFound):
            rows.get(connection, other, made.id)
        with pytest.raises(NotFound):
            ensembles.remove(connection, other, made.id)
    located = ensembles.locate(resources, owner.project_id, made.model)
    assert located is not None
    assert [files.name for files in located.members] == pair
    assert all((files.directory / "task.json").is_file() for files in located.members)
    assert ensembles.locate(resources, owner.project_id, pair[0]) is None


def test_ensembles_come_in_pages_newest_first(
    resources: Resources, owner: Principal, pair: list[str]
) -> None:
    made = [create(resources, owner, asking(*pair)) for _ in range(3)]
    with resources.database.read() as connection:
        first = rows.list_page(connection, owner.project_id, after=None, limit=2)
        rest = rows.list_page(connection, owner.project_id, after=first.items[1].id, limit=2)
        assert [*first.items, *rest.items] == made[::-1]
        assert (first.has_more, rest.has_more) == (True, False)
        assert rows.list_all(connection, owner.project_id) == made


def test_what_an_ensemble_needs_is_kept_until_it_is_gone(
    resources: Resources, database: Database, owner: Principal, pair: list[str]
) -> None:
    made = create(resources, owner, asking(*pair))
    with pytest.raises(ModelInUse, match=made.model) as refused:
        remove(database, owner, pair[1])
    assert refused.value.param == "model"
    with pytest.raises(InvalidInput, match="is an ensemble"):
        remove(database, owner, made.model)
    with database.write() as connection:
        assert ensembles.remove(connection, owner.project_id, made.id) == made
        assert connection.execute(select(ensemble_members)).all() == []
    assert ensembles.locate(resources, owner.project_id, made.model) is None
    for name in pair:
        remove(database, owner, name)


def test_a_checkpoint_that_goes_with_its_model_is_kept_too(
    resources: Resources, database: Database, owner: Principal, pair: list[str]
) -> None:
    with database.write() as connection:
        final = adapters.find(connection, owner.project_id, pair[0])
        assert final is not None
        checkpoint = f"{final.name}:ckpt-step-1"
        adapters.add(
            connection,
            name=checkpoint,
            project_id=owner.project_id,
            job_id=final.job_id,
            base_model=BASE_MODEL,
            task=TASK,
            storage_prefix=final.storage_prefix,
            manifest_sha256=final.manifest_sha256,
            step=1,
            is_final=False,
        )
    create(resources, owner, asking(checkpoint, pair[1]))
    for name in (final.name, checkpoint):
        with pytest.raises(ModelInUse):
            remove(database, owner, name)


def test_a_member_that_is_deleted_in_the_meantime_is_not_joined(
    resources: Resources, database: Database, owner: Principal, pair: list[str]
) -> None:
    prepared = ensembles.prepare(resources, owner, asking(*pair))
    remove(database, owner, pair[1])
    with pytest.raises(NotFound) as refused, database.write() as connection:
        ensembles.add(connection, prepared)
    assert refused.value.param == "models[1]"
    with database.read() as connection:
        assert rows.list_all(connection, owner.project_id) == []


@pytest.mark.parametrize("is_joined_first", [True, False])
def test_of_joining_and_deleting_at_once_one_succeeds(
    resources: Resources,
    database: Database,
    owner: Principal,
    pair: list[str],
    is_joined_first: bool,
) -> None:
    prepared = ensembles.prepare(resources, owner, asking(*pair))
    raised: list[DomainError] = []

    def join() -> None:
        with database.write() as connection:
            ensembles.add(connection, prepared)

    def delete() -> None:
        remove(database, owner, pair[0])

    def second() -> None:
        try:
            (delete if is_joined_first else join)()
        except DomainError as error:
            raised.append(error)

    thread = threading.Thread(target=second)
    with database.write() as connection:
        if is_joined_first:
            ensembles.add(connection, prepared)
        else:
            models.remove(connection, CATALOGUE, owner.project_id, pair[0])
        # It waits for the end of this transaction, or begins after it.
        thread.start()
    thread.join()
    assert [type(error) for error in raised] == [ModelInUse if is_joined_first else NotFound]


def test_what_cannot_answer_as_one_is_refused(
    resources: Resources, owner: Principal, pair: list[str]
) -> None:
    add_model(resources, owner, "ft:chat", task="text-generation")
    add_model(resources, owner, "ft:image", task="image-classification")
    add_model(resources, owner, "ft:other-labels", labels=("dull", "good"))
    add_model(resources, owner, "ft:several", problem="multi_label")
    add_model(resources, owner, "ft:number", problem="regression", labels=())
    joined = create(resources, owner, asking(*pair)).model
    with resources.database.write() as connection:
        add_adapter(connection, owner.project_id, "ft:lost", task=TASK)
        add_adapter(connection, add_project(connection, "other"), "ft:theirs", task=TASK)
    for names, kind, param, words in (
        (("ft:chat", pair[0]), InvalidInput, "models[0]", "is a model for text-generation: means"),
        ((pair[0], "ft:image"), InvalidInput, "models[1]", "members have one task"),
        ((pair[0], "ft:other-labels"), InvalidInput, "models[1]", "one of dull, good, and"),
        ((pair[0], "ft:several"), InvalidInput, "models[1]", "any of bad, good"),
        ((pair[0], "ft:number"), InvalidInput, "models[1]", "predicts a number"),
        ((pair[0], joined), InvalidInput, "models[1]", "is an ensemble"),
        ((pair[0], BASE_MODEL), InvalidInput, "models[1]", "is no fine-tuned model"),
        ((pair[0], pair[0]), InvalidInput, "models", "twice"),
        ((pair[0], "ft:nothing"), NotFound, "models[1]", "does not exist"),
        ((pair[0], "ft:theirs"), NotFound, "models[1]", "does not exist"),
        ((pair[0], "ft:lost"), ModelDamaged, None, "ft:lost"),
    ):
        with pytest.raises(kind, match=words) as refused:
            create(resources, owner, asking(*names))
        assert refused.value.param == param
    with pytest.raises(InvalidInput) as refused:
        create(resources, owner, asking(*pair, weights=[1.0]))
    assert refused.value.param == "weights"


class TestMeansOfAdapters:
    def test_the_members_are_located_as_one_adapter(
        self, resources: Resources, owner: Principal
    ) -> None:
        names = [add_lora(resources, owner, f"ft:lora:{number}") for number in range(2)]
        made = create(resources, owner, asking(*names, method="mean_adapters", weights=[3, 1]))
        assert made.task == "text-generation"
        # It is an adapter to whoever calls it, and no name to train from or to grade by.
        assert ensembles.locate(resources, owner.project_id, made.model) is None
        files = models.locate(resources, owner.project_id, made.model, CHAT)
        assert files is not None
        assert files.name == made.model
        assert [one.weight for one in files.members] == [0.75, 0.25]
        assert files.directory == files.members[0].directory != files.members[1].directory
        assert all((one.directory / "adapter_config.json").is_file() for one in files.members)
        with pytest.raises(InvalidInput, match="is a model for text-generation: use"):
            models.locate(resources, owner.project_id, made.model, PREDICTIONS)
        with (
            resources.database.read() as connection,
            pytest.raises(InvalidInput, match="is an ensemble"),
        ):
            models.find(connection, CATALOGUE, owner.project_id, made.model)
        with pytest.raises(ModelInUse):
            remove(resources.database, owner, names[0])

    def test_what_has_no_mean_is_refused(
        self, resources: Resources, owner: Principal, pair: list[str]
    ) -> None:
        first = add_lora(resources, owner, "ft:lora:1")
        add_lora(resources, owner, "ft:ia3", config={"peft_type": "IA3"})
        add_lora(resources, owner, "ft:dora", config={"peft_type": "LORA", "use_dora": True})
        add_lora(resources, owner, "ft:full", config=None)
        add_lora(resources, owner, "ft:template", template="1" * 64)
        other = add_lora(resources, owner, "ft:other-base")
        with resources.database.write() as connection:
            connection.execute(
                update(adapter_table)
                .where(adapter_table.c.name == other)
                .values(base_model="all-minilm-l6-v2")
            )
        for name, words in (
            (pair[0], "is a model for text-classification, with a head of its own"),
            ("ft:ia3", "is no plain LoRA adapter"),
            ("ft:dora", "is no plain LoRA adapter"),
            ("ft:full", "is no plain LoRA adapter"),
            ("ft:template", "another chat template than 'ft:lora:1'"),
            (other, "of all-minilm-l6-v2, and 'ft:lora:1' of"),
        ):
            with pytest.raises(InvalidInput, match=words) as refused:
                create(resources, owner, asking(first, name, method="mean_adapters"))
            assert refused.value.param == "models[1]"


def add_lora(
    resources: Resources,
    owner: Principal,
    name: str,
    *,
    config: dict[str, Any] | None = {"peft_type": "LORA"},  # noqa: B006
    template: str = "0" * 64,
) -> str:
    """Add a fine-tuned model for text generation with what describes its weights."""
    with resources.database.write() as connection:
        adapter = add_adapter(connection, owner.project_id, name)
    scratch = resources.storage.scratch()
    if config is not None:
        (scratch / "adapter_config.json").write_text(json.dumps(config))
    (scratch / "manifest.json").write_text(json.dumps({"chat_template_sha256": template}))
    resources.storage.publish(adapter.storage_prefix, scratch)
    return name


def test_models_of_numbers_and_of_several_labels_can_be_joined(
    resources: Resources, owner: Principal
) -> None:
    for problem, labels in (("regression", ()), ("multi_label", ("a", "b"))):
        names = [
            add_model(resources, owner, f"ft:{problem}:{number}", problem=problem, labels=labels)
            for number in range(3)
        ]
        made = create(resources, owner, asking(*names))
        assert sum(one.weight for one in made.members) == pytest.approx(1)
    names = [
        add_model(resources, owner, f"ft:image:{number}", task="image-classification")
        for number in range(2)
    ]
    assert create(resources, owner, asking(*names)).task == "image-classification"
