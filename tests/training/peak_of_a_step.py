"""Print by how many bytes a step raises the peak of a process, activations kept or not."""

import os
import resource
import sys

import torch
from transformers import LlamaConfig, LlamaModel

from worker.training.recomputation import RecomputedLayers

TOKENS = 1024
_KIBIBYTE = 1024


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=24,
        num_attention_heads=2,
    )
    model = LlamaModel(config).requires_grad_(False)
    for is_recomputed in (False, True):
        child = os.fork()
        if child == 0:
            _step(model, is_recomputed)
            os._exit(0)
        os.waitpid(child, 0)


def _step(model: LlamaModel, is_recomputed: bool) -> None:
    before = _peak_bytes()
    if is_recomputed:
        RecomputedLayers(model)
    embeddings = torch.zeros(1, TOKENS, model.config.hidden_size, requires_grad=True)
    model(inputs_embeds=embeddings, use_cache=False)[0].sum().backward()
    sys.stdout.write(f"{_peak_bytes() - before}\n")
    sys.stdout.flush()


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIBIBYTE


if __name__ == "__main__":
    main()
