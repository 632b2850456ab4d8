"""What llama.cpp computes of a GGUF file. Imported by name, where its package is installed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from torch import Tensor

from app.domain.errors import ExportFailed

_BATCH_TOKENS = 512


def model_outputs(
    path: Path, adapter: Path | None, sequences: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """Yield the logits of sequences, [tokens, vocabulary] float32 each.

    Args:
        adapter: a LoRA in GGUF that is put onto the model.

    Raises:
        ExportFailed: llama.cpp does not load a file.
    """
    try:
        model = llama_cpp.Llama(
            str(path),
            lora_path=None if adapter is None else str(adapter),
            n_ctx=max(map(len, sequences)),
            n_batch=_BATCH_TOKENS,
            n_gpu_layers=0,
            logits_all=True,
            verbose=False,
        )
    except (ValueError, RuntimeError) as error:
        raise ExportFailed(f"llama.cpp does not load the export: {error}") from error
    try:
        for sequence in sequences:
            model.reset()
            model.eval(list(sequence))
            yield torch.from_numpy(np.array(model.scores[: len(sequence)], dtype=np.float32))
    finally:
        model.close()
