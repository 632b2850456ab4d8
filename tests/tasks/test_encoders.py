"""Tasks of texts on other kinds of encoders than BERT: tiny ones with random weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)

from app.storage.local import LocalStorage
from tests.support.datasets import faq_texts, movie_reviews, twitter_ner
from tests.tasks.conftest import RunTask, answered, make_task, task_spec
from tests.tasks.quantities import quantity_answers

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

_SIZE: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 0,
}
CONFIGS = {
    "roberta": RobertaConfig(**_SIZE, max_position_embeddings=66),
    "deberta-v2": DebertaV2Config(**_SIZE, max_position_embeddings=64, relative_attention=True),
    "modernbert": ModernBertConfig(**_SIZE, max_position_embeddings=64),
    "electra": ElectraConfig(**_SIZE, embedding_size=16, max_position_embeddings=64),
    "mpnet": MPNetConfig(**_SIZE, max_position_embeddings=66),
    "distilbert": DistilBertConfig(
        vocab_size=30522,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        pad_token_id=0,
        max_position_embeddings=64,
    ),
}
QUESTION = {"question": "How much?", "context": "It is 30 cm wide."}
INPUTS = {
    "text-classification": "A fine film.",
    "token-classification": "Alice lives in Hamburg. " * 20,
    "question-answering": QUESTION,
    "fill-mask": "It is [MASK] wide.",
}


def records_of(task: str) -> list[dict[str, Any]]:
    return {
        "text-classification": lambda: movie_reviews(8),
        "token-classification": lambda: twitter_ner(8, empty=0.0),
        "question-answering": lambda: quantity_answers(8, answerable=0.5),
        "fill-mask": lambda: faq_texts(4),
    }[task]()


# All tasks on one kind, and one task on two that compute in other ways; the rest is slow.
QUICK = {
    *(("roberta", task) for task in INPUTS),
    ("deberta-v2", "token-classification"),
    ("modernbert", "fill-mask"),
}
CASES = [
    pytest.param(
        kind, task, id=f"{kind}-{task}", marks=() if (kind, task) in QUICK else pytest.mark.slow
    )
    for kind in CONFIGS
    for task in INPUTS
]


@pytest.fixture
def encoder(kind: str, minilm: Path, tmp_path: Path) -> Path:
    """A model of a kind under MiniLM's tokenizer."""
    directory = tmp_path / "encoder"
    torch.manual_seed(0)
    AutoModel.from_config(CONFIGS[kind]).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(minilm / name, directory / name)
    return directory


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_is_trained_and_asked(
    run_task: RunTask, storage: LocalStorage, encoder: Path, task: str
) -> None:
    records = records_of(task)
    method = "continued_pretraining" if task == "fill-mask" else "supervised"
    spec = task_spec(storage, task, records, method=method, batch_size=4, learning_rate=0.01)

    attempt = run_task(spec, encoder)

    assert attempt.last["type"] == "finished"
    assert all(one["grad_norm"] > 0 for one in attempt.of_type("step"))
    made = make_task(task, encoder, records)
    assert made.head_modules
    assert answered(made, INPUTS[task]) is not None
