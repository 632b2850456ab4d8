"""A fine-tuned model leaves the house: exported by the whole stack, loaded by other software."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.db.repositories import exports
from tests.conftest import INSTALLATIONS
from tests.support.answers import ask, text_of
from tests.support.exports import create_export, retrieve_export, wait_until_exported
from tests.support.jobs import Run
from tests.support.polling import eventually
from tests.support.service import Service

# No database changes what an export is.
on_one = pytest.mark.parametrize("stack", INSTALLATIONS[:1], indirect=True, scope="session")


@pytest.fixture
def exporter(stack: Service) -> Iterator[httpx.Client]:
    with stack.http(stack.key) as http:
        yield http


@on_one
def test_a_merged_model_answers_as_it_is_served(
    exporter: httpx.Client, user: OpenAI, run: Run, tmp_path: Path
) -> None:
    created = create_export(exporter, run.model, "merged", metadata={"for": "phones"})
    assert created["status"] == "queued"
    assert created["quantization"] == "float32"
    ended = wait_until_exported(exporter, created)
    assert ended["status"] == "succeeded", ended
    assert ended["metadata"] == {"for": "phones"}
    verification = ended["verification"]
    assert verification["method"] == "transformers"
    assert verification["inputs"] == "validation_file"
    assert verification["is_within_limit"]
    assert 0 <= verification["max_abs_logit_difference"] < 0.01

    (file_id,) = ended["result_files"]
    assert user.files.retrieve(file_id).purpose == "export"
    content = user.files.content(file_id).content
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(tmp_path, filter="data")
    (directory,) = tmp_path.iterdir()
    check_sums(directory)
    card = (directory / "README.md").read_text()
    told = [run.job.id, run.job.training_file, "apache-2.0", "HuggingFaceTB", "| loss |"]
    assert [one for one in told if one not in card] == []

    asked = [{"role": "user", "content": "Is the red bike in stock?"}]
    served = text_of(ask(user, run.model, messages=asked, max_completion_tokens=6, temperature=0))
    assert answer_of(directory, asked, tokens=6) == served


@on_one
def test_whatever_is_killed_an_export_is_made_once(
    stack: Service, exporter: httpx.Client, user: OpenAI, run: Run
) -> None:
    before = {file.id for file in user.files.list(purpose="export")}
    created = create_export(exporter, run.model, "adapter")
    stack.kill("exporter")
    # The worker sees it and tries again; then it is killed itself, and another takes over.
    eventually(lambda: attempts_of(stack, created["id"]) == 2, what="there is a second attempt")
    process = psutil.Process(stack.pid("exporter"))
    stack.kill("worker")
    eventually(lambda: not process.is_running(), what="its process followed", within_seconds=15)
    ended = wait_until_exported(exporter, created)
    assert ended["status"] == "succeeded", ended
    assert attempts_of(stack, created["id"]) == 3
    assert {file.id for file in user.files.list(purpose="export")} - before == set(
        ended["result_files"]
    )


@on_one
def test_a_cancelled_export_is_stopped_and_leaves_nothing(
    stack: Service, exporter: httpx.Client, user: OpenAI, run: Run
) -> None:
    before = {file.id for file in user.files.list(purpose="export")}
    # What a killed worker leaves stays for an hour.
    left = directories_in(stack.data_dir / "storage" / "tmp")
    created = create_export(exporter, run.model, "merged")
    process = psutil.Process(stack.pid("exporter"))
    # Held still, so that it cannot be done before the heartbeat finds out.
    process.suspend()
    assert exporter.post(f"/v1/exports/{created['id']}/cancel").json()["status"] == "cancelled"
    eventually(lambda: not process.is_running(), what="its process is gone", within_seconds=15)
    assert retrieve_export(exporter, created["id"])["status"] == "cancelled"
    assert {file.id for file in user.files.list(purpose="export")} == before
    eventually(
        lambda: directories_in(stack.data_dir / "storage" / "tmp") <= left,
        what="its directory is gone",
    )


@on_one
def test_the_command_downloads_what_it_exported(stack: Service, run: Run, tmp_path: Path) -> None:
    arguments = ["--format", "adapter", "--into", str(tmp_path), "--api-key", stack.key]
    told = stack.tunesmith("export", run.model, *arguments).splitlines()
    (path,) = tmp_path.iterdir()
    assert told[0] == str(path)
    assert told[1].startswith("loaded back by peft: relative difference ")
    with tarfile.open(path) as tar:
        names = {Path(member.name).name for member in tar}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= names


def directories_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.is_dir()}


def attempts_of(stack: Service, export_id: str) -> int:
    with stack.database() as database, database.read() as connection:
        export = exports.find(connection, export_id)
    assert export is not None
    return export.attempts


def check_sums(directory: Path) -> None:
    """Compare every file with its digest in SHA256SUMS."""
    listed = dict(
        reversed(line.split("  ")) for line in (directory / "SHA256SUMS").read_text().splitlines()
    )
    found = {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "SHA256SUMS"
    }
    assert found == listed


def answer_of(directory: Path, messages: Any, tokens: int) -> str:
    """Return the greedy answer of a model by plain `transformers`."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    found = model.generate(**prompt, max_new_tokens=tokens, do_sample=False)
    text: str = tokenizer.decode(found[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return text
