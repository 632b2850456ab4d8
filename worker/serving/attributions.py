"""Integrated gradients: what each token adds to a score. Imported by its path: captum is slow.

Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365: gradients of the score are summed up on
the straight path from a baseline to the input, here of the embeddings of words, and multiplied by
the way. All that is added makes the difference of the two scores (completeness), but for how
coarse the steps are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor, nn

from app.domain.errors import InvalidInput
from worker.serving.prediction_request import TaskModel
from worker.tasks import Example
from worker.tasks.requests import text_and_pair
from worker.tasks.text_classification import TextClassification

_REGRESSION = "score"
_FIELDS = ("text", "text_pair")


def attribute(
    model: TaskModel,
    value: Any,
    example: Example,
    target: str | None,
    *,
    num_steps: int,
    steps_per_pass: int,
) -> dict[str, Any]:
    """Return what each token of an input adds to the score of a label.

    The baseline is the input with padding in place of every token but the special ones.

    Args:
        target: the label; None is the one with the highest score.
        num_steps: points on the path, by the rule of Gauss and Legendre.

    Raises:
        InvalidInput: there is no such label, or the model's tokenizer does not know where in the
            text its tokens are.
    """
    task = model.task
    assert isinstance(task, TextClassification)
    if not task.tokenizer.is_fast:
        raise InvalidInput(
            "this model's tokenizer does not tell where in the text its tokens are", param="model"
        )
    device = next(model.module.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in task.collate([example]).items()}
    with torch.no_grad():
        scores = task.scores(model.module, batch)[0]
    number, label = _target(task.labels, scores, target)

    input_ids = batch.pop("input_ids")
    others = list(batch)

    def score(ids: Tensor, *rest: Tensor) -> Tensor:
        inputs = {"input_ids": ids, **dict(zip(others, rest, strict=True))}
        return task.scores(model.module, inputs)[:, number]

    # Cut to as many tokens as the example has: then these are the very same.
    text, pair = text_and_pair(value)
    encoding = task.tokenizer(
        text,
        pair,
        truncation=True,
        max_length=input_ids.shape[1],
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    is_special = torch.tensor([encoding["special_tokens_mask"]], device=device).bool()
    baseline = input_ids.where(is_special, task.tokenizer.pad_token_id or 0)
    layer: nn.Module = task.model.get_input_embeddings()
    rest = tuple(batch.values())
    found = LayerIntegratedGradients(score, layer).attribute(
        input_ids,
        baselines=baseline,
        additional_forward_args=rest,
        n_steps=num_steps,
        internal_batch_size=steps_per_pass,
    )
    attributions = found[0].float().sum(dim=1)  # [tokens that the model sees]
    baseline_score = float(_score_of_embeddings(layer, baseline, lambda: score(input_ids, *rest)))
    tokens = task.tokenizer.convert_ids_to_tokens(input_ids[0].tolist())
    return {
        "label": label,
        "score": float(scores[number]),
        "baseline_score": baseline_score,
        "attributions": [
            {
                "token": token,
                "field": _FIELDS[field],
                "start": start,
                "end": end,
                "attribution": added,
            }
            # A prompt that was learnt takes the places of the last tokens: then fewer are seen.
            for token, field, (start, end), added in zip(
                tokens,
                encoding.sequence_ids(0),
                encoding["offset_mapping"],
                attributions.tolist(),
                strict=False,
            )
            if field is not None
        ],
        "convergence_delta": float(attributions.sum()) - (float(scores[number]) - baseline_score),
    }


def _target(labels: Sequence[str], scores: Tensor, target: str | None) -> tuple[int, str]:
    names = list(labels) or [_REGRESSION]
    if target is None:
        number = int(scores.argmax())
        return number, names[number]
    if target not in names:
        raise InvalidInput(
            f"'parameters.target': {target!r} is not among the labels {', '.join(names[:20])}",
            param="parameters.target",
        )
    return names.index(target), target


def _score_of_embeddings(
    layer: nn.Module, token_ids: Tensor, score: Callable[[], Tensor]
) -> Tensor:
    """Return a score in which other tokens than the input's are embedded, and no more is other.

    Given to the model, they could be taken for padding where it counts positions or looks for the
    last token, which are not on the path.
    """
    with torch.no_grad():
        embedded = layer(token_ids)
        hook = layer.register_forward_hook(lambda *called: embedded[:, : called[-1].shape[1]])
        try:
            return score()
        finally:
            hook.remove()
