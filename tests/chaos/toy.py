"""A base model small enough that a job takes seconds, under the real tokenizer and template."""

import os
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from app.base_models import ensure_installed, load_catalogue
from tests.support.service import REPOSITORY

TOY = "toy"

_REAL = "smollm2-135m-instruct"
_COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_CATALOGUE = """\
[[models]]
id = "{id}"
source = "dir:{directory}"
revision = "1"
name = "tests/toy"
tasks = ["text-generation"]
context_length = 512
learning_rate = 1e-3
licence = "apache-2.0"
"""


def build_toy_base(root: Path) -> tuple[Path, Path]:
    """Make the model, install it, and return the catalogue and the directory of models.

    It is installed here, so that no job of an experiment pays for that.
    """
    directory, catalogue, models_dir = root / "toy", root / "models.toml", root / "models"
    directory.mkdir()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    for name in _COPIED:
        shutil.copyfile(_real_base() / name, directory / name)
    catalogue.write_text(_CATALOGUE.format(id=TOY, directory=directory))
    ensure_installed(load_catalogue(catalogue).get(TOY), models_dir)
    return catalogue, models_dir


def _real_base() -> Path:
    models_dir = Path(os.environ.get("MODELS_DIR") or REPOSITORY / ".tunesmith" / "models")
    # A path at which there is no catalogue stands for the default one.
    catalogue = load_catalogue(models_dir / "no-catalogue.toml")
    return ensure_installed(catalogue.get(_REAL), models_dir).directory
