"""Converters, tried on models that are small enough to be made here."""

import pickle
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BertConfig, BertModel, BertTokenizer

from app.base_models.converters import CONVERTERS, convert
from app.domain.errors import InvalidInput, Unavailable
from app.domain.registry import resolve
from worker.conversion import efficientnet_lite, encoder_decoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "how", "is", "radon", "measured"]


class Evil:
    """An object that a careless reader of pickles turns into a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    directory = tmp_path / "into"
    directory.mkdir()
    return directory


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_registered_converter_is_there(name: str) -> None:
    assert callable(resolve(CONVERTERS[name]))


def test_what_a_converter_misses_is_told_by_the_process_that_asked(
    tmp_path: Path, into: Path
) -> None:
    with pytest.raises(Unavailable, match=r"with 'gguf': expected one \*\.gguf, found 0$"):
        convert("gguf", tmp_path, into)


def test_code_in_a_file_of_weights_is_not_run(tmp_path: Path, into: Path) -> None:
    canary = tmp_path / "canary"
    torch.save(Evil(canary), tmp_path / "weights.pth")
    with pytest.raises(pickle.UnpicklingError):
        efficientnet_lite.convert(tmp_path, into)
    assert not canary.exists()
    # The control: the file is as evil as it should be.
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert canary.exists()


def test_two_files_of_weights_are_one_too_many(tmp_path: Path, into: Path) -> None:
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(InvalidInput, match="found 2"):
        efficientnet_lite.convert(tmp_path, into)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A BERT of a few thousand weights with its tokenizer."""
    directory = tmp_path / "encoder"
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    torch.manual_seed(1)
    BertModel(config).save_pretrained(directory)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    BertTokenizer(vocab=vocabulary).save_pretrained(directory)
    return directory


def test_an_encoder_becomes_a_model_that_reads_and_writes(encoder: Path, into: Path) -> None:
    encoder_decoder.convert(encoder, into)
    tokenizer = AutoTokenizer.from_pretrained(into)
    model, report = AutoModelForSeq2SeqLM.from_pretrained(into, output_loading_info=True)
    assert not any(report.values())
    source = tokenizer("how is radon measured", return_tensors="pt")
    written = model.eval().generate(**source, max_length=6)
    assert int(written[0, 0]) == tokenizer.cls_token_id
    # Both halves are the encoder: it reads as before, and the writer knows its words.
    before = BertModel.from_pretrained(encoder)
    with torch.no_grad():
        states = model.encoder.eval()(**source).last_hidden_state
        assert torch.equal(states, before.eval()(**source).last_hidden_state)
    words = before.embeddings.word_embeddings.weight
    assert torch.equal(model.decoder.bert.embeddings.word_embeddings.weight, words)
    assert torch.equal(model.decoder.cls.predictions.decoder.weight, words)


def test_what_is_drawn_at_random_is_drawn_alike(encoder: Path, into: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    encoder_decoder.convert(encoder, into)
    torch.rand(7)
    encoder_decoder.convert(encoder, again)
    weights = [directory / "model.safetensors" for directory in (into, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
