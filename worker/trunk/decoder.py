"""The forward pass of the Llama family without gradients, in few operations.

What transformers' own modules do between the matrix products costs most where there are few rows;
`docs/benchmarks.md` has both side by side. This computes the same from the same weights, which are
read where they are: what changes them or wraps them changes what is computed. Whether a model
computes this is checked when it is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu
from transformers import PreTrainedModel

from worker.trunk.batch import Segment
from worker.trunk.lora import LoraSlotsLinear, add_updates_of
from worker.trunk.products import MakeProducts, Products, side_by_side
from worker.trunk.step_attention import StepAttention
from worker.trunk.token_block import MOST_TOKENS, SPAN, TokenBlock

# Families whose layers are as `_Layer` has them; what else a member does differently is found out
# by comparison with its own forward pass.
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def find_decoder(model: PreTrainedModel) -> "Decoder | None":
    """Return the fast forward pass of a model; None if it is of another family."""
    config = model.config
    if config.model_type not in _FAMILIES or config.hidden_act != "silu":
        return None
    return Decoder(model)


class Decoder:
    """The blocks of a model, from the embeddings to the last norm.

    Args:
        model: of one of the families; its modules are used as they are at each call.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        body: Any = model.base_model
        self._rotary = body.rotary_emb
        self._norm = body.norm
        self._layers = [_Layer.of(layer, model.config) for layer in body.layers]
        self._blocks: list[TokenBlock] = []
        if all(layer.window is None or layer.window >= MOST_TOKENS for layer in self._layers):
            kv_heads = self._layers[0].kv_heads
            self._blocks = [
                TokenBlock(len(self._layers), kv_heads) for _ in range(MOST_TOKENS // SPAN)
            ]

    def hidden(self, rows: Tensor, position_ids: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Return the last layer's normalised rows, [tokens, hidden].

        Args:
            rows: embeddings, [tokens, hidden].
            position_ids: [tokens] int64.
            segments: in order; what they have cached is a `SequenceCache`.
        """
        cos, sin = self._rotary(rows[None], position_ids[None])
        half = cos.shape[-1] // 2
        # With the sign of the rotation in the sine, the halves only have to change places.
        signed = torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)[:, None]
        turn = _Turn(cos[0][:, None], signed, half)
        first = self._layers[0]
        like = rows.new_empty(first.head_dim)
        attend = StepAttention(segments, first.kv_heads, like, self._blocks)
        is_adapted = any(segment.adapter is not None for segment in segments)
        for index, layer in enumerate(self._layers):
            rows = layer.forward(index, rows, turn, attend, is_adapted)
        attend.end()
        return _normalised(self._norm, rows)

    def pack(self, make: MakeProducts) -> None:
        """Compute from now on with what `make` makes of the weights as they are now."""
        for layer in self._layers:
            layer.pack(make)


class _Layer:
    """One block: attention, then the gated feed-forward part, each after a norm and added."""

    def __init__(self, layer: Any, head_dim: int, window: int | None) -> None:
        attention, feed = layer.self_attn, layer.mlp
        self.head_dim = head_dim
        self.heads = attention.q_proj.out_features // head_dim
        self.kv_heads = attention.k_proj.out_features // head_dim
        self.window = window
        self._scaling: float = attention.scaling
        self._attention_norm, self._feed_norm = (
            layer.input_layernorm,
            layer.post_attention_layernorm,
        )
        self._query_norm = getattr(attention, "q_norm", None)
        self._key_norm = getattr(attention, "k_norm", None)
        self._into_attention = _Projections(attention, ("q_proj", "k_proj", "v_proj"))
        self._out_of_attention = _Projections(attention, ("o_proj",))
        self._into_feed = _Projections(feed, ("gate_proj", "up_proj"))
        self._out_of_feed = _Projections(feed, ("down_proj",))

    @classmethod
    def of(cls, layer: Any, config: Any) -> "_Layer":
        attention = layer.self_attn
        own = config.sliding_window if config.model_type == "mistral" else None
        return cls(layer, attention.head_dim, getattr(attention, "sliding_window", own))

    def forward(
        self, layer_idx: int, rows: Tensor, turn: "_Turn", attend: StepAttention, is_adapted: bool
    ) -> Tensor:
        """Return [tokens, hidden] for `rows` [tokens, hidden]."""
        inner = self._into_attention(_normalised(self._attention_norm, rows), is_adapted)
        heads = inner.view(rows.shape[0], -1, self.head_dim)
        turned, value = heads.split_with_sizes((self.heads + self.kv_heads, self.kv_heads), 1)
        if self._query_norm is not None:
            query, key = turned.split_with_sizes((self.heads, self.kv_heads), 1)
            query, key = _normalised(self._query_norm, query), _normalised(self._key_norm, key)
            turned = torch.cat((query, key), dim=1)
        query, key = turn(turned).split_with_sizes((self.heads, self.kv_heads), 1)
        attended = attend(layer_idx, query, key, value, self._scaling, self.window)
        rows = self._out_of_attention(attended, is_adapted).add_(rows)
        inner = self._into_feed(_normalised(self._feed_norm, rows), is_adapted)
        gate, up = inner.chunk(2, dim=1)
        return self._out_of_feed(silu(gate).mul_(up), is_adapted).add_(rows)

    def pack(self, make: MakeProducts) -> None:
        for projections in (
            self._into_attention,
            self._out_of_attention,
            self._into_feed,
            self._out_of_feed,
        ):
            projections.pack(make)


class _Projections:
    """Linear layers that take the same rows, and the adapters on them.

    The products of the model's own weights stay apart: joined, they take as long, and the weights
    would have to be laid out anew. Packed weights are copies anyway.
    """

    def __init__(self, owner: nn.Module, names: Sequence[str]) -> None:
        self._owner = owner
        self._names = names
        self._packed: Products | None = None

    def __call__(self, rows: Tensor, is_adapted: bool) -> Tensor:
        """Return what the layers make of `rows` [tokens, in], side by side, as a new tensor.

        Args:
            is_adapted: whether any row is of an adapter.
        """
        if self._packed is not None:
            output = self._packed(rows)
        else:
            layers = self._layers()
            output = side_by_side(
                rows, [layer.weight for layer in layers], [layer.bias for layer in layers]
            )
        if is_adapted:
            add_updates_of(self._layers(), output, rows)
        return output

    def pack(self, make: MakeProducts) -> None:
        layers = self._layers()
        self._packed = make([layer.weight for layer in layers], [layer.bias for layer in layers])

    def _layers(self) -> list[nn.Linear | LoraSlotsLinear]:
        # Looked up each time: an adapter's arrival wraps what it changes.
        modules: Mapping[str, Any] = self._owner._modules
        return [modules[name] for name in self._names]


@dataclass(frozen=True, slots=True)
class _Turn:
    """Rotary position embeddings of a batch.

    Attributes:
        cos: [tokens, 1, head_dim].
        signed_sin: like `cos`; negative in the first half.
    """

    cos: Tensor
    signed_sin: Tensor
    half: int

    def __call__(self, heads: Tensor) -> Tensor:
        """Return `heads` [tokens, heads, head_dim] turned by their positions."""
        return torch.addcmul(heads * self.cos, heads.roll(self.half, -1), self.signed_sin)


def _normalised(norm: Any, rows: Tensor) -> Tensor:
    return rms_norm(rows, (rows.shape[-1],), norm.weight, norm.variance_epsilon)
