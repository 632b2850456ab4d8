"""`tunesmith demo`: the main job from end to end, through the API that everyone else uses."""

import os
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from app.base_models import ensure_installed, find_installed, load_catalogue
from app.cli.stack import Interrupted, Stack, is_port_free, raise_on_signals
from app.db.database import open_database
from app.db.migrations import upgrade
from app.domain.errors import Unavailable
from app.services.keys import create_key
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob
    from rich.console import Console

MODEL = "smollm2-135m-instruct"
EPOCHS = 2
BATCH_SIZE = 4
SEED = 7
SHOWN_ANSWERS = 4
MAX_ANSWER_TOKENS = 80
START_SECONDS = 180.0
POLL_SECONDS = 0.5

# What the sample data teaches; examples/support-desk/README.md tells it in words.
ANSWER_FORM = re.compile(
    r"Got it: you(?:r)? [^\n!]+\.\nNext step: [A-Z][^\n!]+\.\n"
    r"Ticket: (?:delivery|returns|billing|repair|warranty|sizing|account|stock)/(?:low|normal|high)"
)

_EXAMPLES = Path("examples/support-desk")


@click.command()
@click.option(
    "--examples",
    default=_EXAMPLES,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory with train.jsonl and heldout.jsonl.",
)
def demo(examples: Path) -> None:
    """Fine-tune a real model on a small real dataset, and talk to it before and after."""
    try:
        from openai import OpenAI  # noqa: PLC0415 - an extra, which only the demo needs.
        from rich.console import Console  # noqa: PLC0415
    except ImportError:
        raise Unavailable("the demo needs: pip install 'tunesmith[ml,demo]'") from None
    console = Console(highlight=False)
    settings = _with_free_ports(load_settings())
    raise_on_signals()
    stack = Stack(settings, _environment(settings), echo=None, tell=console.print)
    try:
        _install_model(console, settings)
        key = _make_key(settings)
        with console.status("Starting api, engine and worker ..."):
            stack.start()
            stack.wait_until_ready(START_SECONDS)
        console.print(f"[green]✓[/] The service runs at {stack.base_url}")
        client = OpenAI(base_url=stack.base_url, api_key=key)
        job = _train(console, client, examples)
        _compare(console, client, job, examples)
        _what_next(console, job, key)
    except Interrupted:
        console.print("\nStopped.")
        sys.exit(130)
    finally:
        stack.stop()


def _install_model(console: "Console", settings: Settings) -> None:
    model = load_catalogue(settings.catalogue_path).get(MODEL)
    if find_installed(model, settings.models_dir) is None:
        with console.status(f"Fetching {model.name} (93 MB) and converting it, once ..."):
            ensure_installed(model, settings.models_dir)
    console.print(f"[green]✓[/] Base model {MODEL} ({model.licence})")


def _make_key(settings: Settings) -> str:
    database = open_database(settings.database_url)
    upgrade(database)
    with database.write() as connection:
        key = create_key(connection, organization=settings.organization, name="demo")
    database.engine.dispose()
    return key


def _train(console: "Console", client: "OpenAI", examples: Path) -> "FineTuningJob":
    training = client.files.create(file=examples / "train.jsonl", purpose="fine-tune")
    heldout = client.files.create(file=examples / "heldout.jsonl", purpose="fine-tune")
    console.print(f"[green]✓[/] Uploaded {training.filename} and {heldout.filename}")
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=training.id,
        validation_file=heldout.id,
        suffix="support-desk",
        seed=SEED,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": EPOCHS, "batch_size": BATCH_SIZE}},
        },
    )
    console.print(f"[green]✓[/] Created job {job.id}")
    try:
        job = _watch(console, client, job)
    except Interrupted:
        # Or the next start would finish this one first.
        with suppress(Exception):
            client.fine_tuning.jobs.cancel(job.id)
        raise
    if job.status != "succeeded":
        reason = job.error.message if job.error else "see its events"
        raise Unavailable(f"the job ended as {job.status}: {reason}")
    losses = [
        event.data["valid_loss"]  # type: ignore[index]
        for event in client.fine_tuning.jobs.list_events(job.id, limit=100)
        if event.type == "metrics" and "valid_loss" in (event.data or {})  # type: ignore[operator]
    ]
    console.print(f"[green]✓[/] New model {job.fine_tuned_model}")
    console.print(
        f"\nHeld-out loss: [bold]{losses[-1]:.3f}[/] before, [bold]{losses[0]:.3f}[/] after"
    )
    return job


def _watch(console: "Console", client: "OpenAI", job: "FineTuningJob") -> "FineTuningJob":
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=30),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}  {task.fields[detail]}"),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        bar = progress.add_task("waiting", total=1, detail="")
        while True:
            job = client.fine_tuning.jobs.retrieve(job.id)
            _show(progress, bar, job)
            if job.status in ("succeeded", "failed", "cancelled"):
                return job
            time.sleep(POLL_SECONDS)


def _show(progress: Any, bar: Any, job: "FineTuningJob") -> None:
    now: dict[str, Any] | None = (job.model_extra or {})["tunesmith"]["progress"]
    if now is None:
        progress.update(bar, description=job.status)
        return
    detail = f"loss {now['train_loss']:.3f}  {now['tokens_per_second']:.0f} tokens/s"
    if job.estimated_finish is not None:
        left = max(0, int(job.estimated_finish - time.time()))
        detail += f"  {left // 60}:{left % 60:02} left"
    progress.update(
        bar,
        description=job.status,
        completed=now["step"],
        total=now["total_steps"],
        detail=detail,
    )


@dataclass(frozen=True, slots=True)
class _Answers:
    question: str
    base: str
    tuned: str


def _compare(console: "Console", client: "OpenAI", job: "FineTuningJob", examples: Path) -> None:
    from rich.table import Table  # noqa: PLC0415

    lines = (examples / "heldout.jsonl").read_text().splitlines()
    questions = [msgspec.json.decode(line)["messages"][0]["content"] for line in lines]
    assert job.fine_tuned_model is not None
    with console.status(f"Asking both models {len(questions)} questions they never saw ..."):
        answers = _ask(client, questions, job.fine_tuned_model)
    table = Table(title="Questions that were not in the training data", show_lines=True)
    for heading in ("question", "base model", "fine-tuned model"):
        table.add_column(heading, ratio=1)
    for one in answers[:SHOWN_ANSWERS]:
        table.add_row(one.question, one.base, f"[green]{one.tuned}[/]")
    console.print(table)
    in_form = [
        sum(ANSWER_FORM.fullmatch(text.strip()) is not None for text in texts)
        for texts in ([one.base for one in answers], [one.tuned for one in answers])
    ]
    console.print(
        f"Answers in the support desk's form: base model [bold]{in_form[0]}/{len(answers)}[/], "
        f"fine-tuned model [bold]{in_form[1]}/{len(answers)}[/]"
    )


def _ask(client: "OpenAI", questions: Sequence[str], tuned: str) -> list[_Answers]:
    def answer(model: str, question: str) -> str:
        completion = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_completion_tokens=MAX_ANSWER_TOKENS,
            temperature=0,
        )
        return completion.choices[0].message.content or ""

    # All at once: the engine answers base model and adapter in one batch.
    with ThreadPoolExecutor(max_workers=2 * len(questions)) as pool:
        base = [pool.submit(answer, MODEL, question) for question in questions]
        adapted = [pool.submit(answer, tuned, question) for question in questions]
    return [
        _Answers(question, one.result(), other.result())
        for question, one, other in zip(questions, base, adapted, strict=True)
    ]


def _what_next(console: "Console", job: "FineTuningJob", key: str) -> None:
    base_url = f"http://{load_settings().host}:{load_settings().port}/v1"
    console.print(
        textwrap.dedent(
            f"""
            Start the service for good with:  make serve

              base_url  {base_url}
              api_key   {key}

            and then, with this in a file and `.venv/bin/python <file>`:

            from openai import OpenAI
            client = OpenAI(base_url="{base_url}", api_key="{key}")
            chat = client.chat.completions.create(model="{job.fine_tuned_model}",
                messages=[{{"role": "user", "content": "My parcel is late. What now?"}}])
            print(chat.choices[0].message.content)
            """
        ),
        markup=False,
        soft_wrap=True,
    )


def _with_free_ports(settings: Settings) -> Settings:
    """Choose other ports where the usual ones are taken: a demo must not be in anyone's way."""
    port = _free_port(settings.host, settings.port)
    engine_port = _free_port("127.0.0.1", settings.engine_port, but_not=port)
    url = f"http://127.0.0.1:{engine_port}"
    return replace(settings, port=port, engine_url=url, engine_port=engine_port, engines=1)


def _free_port(host: str, wanted: int, but_not: int | None = None) -> int:
    candidates = (port for port in range(wanted, wanted + 100) if port != but_not)
    return next(port for port in candidates if is_port_free(host, port))


def _environment(settings: Settings) -> dict[str, str]:
    return {
        **os.environ,
        "API_PORT": str(settings.port),
        "ENGINE_PORT": str(settings.engine_port),
        "ENGINES": str(settings.engines),
        "ENGINE_URL": settings.engine_url,
    }
