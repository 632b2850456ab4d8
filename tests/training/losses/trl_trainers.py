"""TRL's own losses, computed by its trainers on a tiny model.

A trainer is made without its `__init__`, which wants data sets and a run; what is called is TRL's
own code, from token ids to the loss.
"""

import warnings
from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.utils import add_fused_lm_head

with warnings.catch_warnings():
    # TRL says that what is below `experimental` may change; its version is pinned here.
    warnings.simplefilter("ignore")
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

__all__ = [
    "TOLERANCE",
    "VOCAB",
    "CPOTrainer",
    "ChunkedLogProbFunction",
    "DPOTrainer",
    "GRPOTrainer",
    "KTOTrainer",
    "ORPOTrainer",
    "Padded",
    "TinyModel",
    "assert_alike",
    "pad",
    "tiny_model",
    "trainer",
]

VOCAB = 32
LONGEST = 16
TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}
FUSED_OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


class TinyModel(LlamaForCausalLM):
    """A random frozen model, and something to take the gradient in.

    Attributes:
        probe: [1, LONGEST, hidden] zeros, added to the last hidden states of every pass. The
            gradient in it is what an adapter below would see, before a whole model blurs it.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.requires_grad_(False)
        self.probe = torch.zeros(1, LONGEST, config.hidden_size, requires_grad=True)
        self.model.register_forward_hook(self._add_probe)

    def _add_probe(self, _module: Any, _args: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden + self.probe[:, : hidden.shape[1]]
        return output


def tiny_model(seed: int, temperature: float = 1.0) -> TinyModel:
    """Return a random model as TRL's trainers want theirs."""
    torch.manual_seed(seed)
    model = TinyModel(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            initializer_range=0.3,
            tie_word_embeddings=False,
        )
    )
    add_fused_lm_head(model, temperature=temperature, outputs=FUSED_OUTPUTS)
    return model


def assert_alike(found: Tensor, expected: Tensor, model: TinyModel) -> None:
    """A loss and its gradient are TRL's, in float32 to 1e-6."""
    torch.testing.assert_close(found, expected, **TOLERANCE)
    (gradient,) = torch.autograd.grad(found, model.probe)
    (expected_gradient,) = torch.autograd.grad(expected, model.probe)
    assert expected_gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient, expected_gradient, **TOLERANCE)


def trainer(trainer_class: type, **attributes: Any) -> Any:
    """Return a trainer that has only the attributes which its loss reads."""
    made = object.__new__(trainer_class)
    common = {
        "accelerator": Accelerator(cpu=True),
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None),
        "aux_loss_enabled": False,
        "is_encoder_decoder": False,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for name, value in (common | attributes).items():
        setattr(made, name, value)
    return made


@dataclass(frozen=True)
class Padded:
    """Sequences as TRL's collators lay them out.

    Attributes:
        input_ids: [sequences, longest] int64.
        attention_mask: [sequences, longest] int64.
        completion_mask: [sequences, longest] int64, 1 for tokens of the answer.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor

    @property
    def labels(self) -> Tensor:
        """The answers' tokens, and -100 elsewhere."""
        return self.input_ids.masked_fill(self.completion_mask == 0, -100)


def pad(sequences: list[tuple[list[int], list[int]]]) -> Padded:
    """Lay (prompt, answer) pairs out, padded to the right."""
    longest = max(len(prompt) + len(answer) for prompt, answer in sequences)
    ids, attention, completion = [], [], []
    for prompt, answer in sequences:
        rest = longest - len(prompt) - len(answer)
        ids.append(prompt + answer + [0] * rest)
        attention.append([1] * (longest - rest) + [0] * rest)
        completion.append([0] * len(prompt) + [1] * len(answer) + [0] * rest)
    return Padded(torch.tensor(ids), torch.tensor(attention), torch.tensor(completion))
