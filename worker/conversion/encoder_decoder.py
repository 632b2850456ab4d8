"""Two copies of one BERT-like encoder become a text-to-text model.

One reads; the other writes, through an attention to the first and an output layer that no one has
trained yet ("Leveraging Pre-trained Checkpoints for Sequence Generation Tasks", arXiv 1907.12461).
"""

from pathlib import Path

import torch
from transformers import AutoTokenizer, EncoderDecoderModel, GenerationConfig

# What is new is drawn at random: always the same, so that two installations are equal.
_SEED = 0
_LONGEST_TARGET_TOKENS = 128


def convert(fetched: Path, into: Path) -> None:
    """Write the model whose encoder and decoder both start from `fetched`. See the package."""
    tokenizer = AutoTokenizer.from_pretrained(fetched)
    torch.manual_seed(_SEED)
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(str(fetched), str(fetched))
    settings = {
        "decoder_start_token_id": tokenizer.cls_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.config.update({**settings, "vocab_size": model.config.decoder.vocab_size})
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        **settings, max_length=_LONGEST_TARGET_TOKENS
    )
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)
