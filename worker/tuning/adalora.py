"""AdaLoRA while it is trained: singular vectors stay orthogonal, ranks go where they matter.

Source: Zhang et al. 2023, https://arxiv.org/abs/2303.10512. `peft` has the allocation; its state
is kept with a checkpoint here, so that a resumed run goes on as it would have.
"""

from collections.abc import Mapping
from typing import Any

import peft
import torch
from torch import Tensor

_IMPORTANCE = "importance:"
_UNCERTAINTY = "uncertainty:"
_KEPT = "kept:"


class RankAllocation:
    """See `extras.Extra`.

    Args:
        allocates: the run is long enough for ranks to be taken away.
    """

    def __init__(self, model: peft.PeftModel, *, allocates: bool) -> None:
        self._tuner: Any = model.base_model
        self._allocates = allocates

    @property
    def _allocator(self) -> Any:
        return self._tuner.rankallocator

    @property
    def _config(self) -> Any:
        return self._tuner.peft_config[self._tuner.trainable_adapter_name]

    def before_update(self, step: int) -> Tensor | None:
        """Return how far the singular vectors are from being orthogonal, section 3.1 of the paper.

        `peft` adds it where a model returns a loss, which the models of tasks do not.
        """
        distances = []
        for name, weight in self._tuner.model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                flat = weight.flatten(1)
                vectors = flat if "lora_A" in name else flat.T
                unit = torch.eye(len(vectors), device=vectors.device)
                distances.append(torch.linalg.matrix_norm(vectors @ vectors.T - unit))
        mean: Tensor = torch.stack(distances).mean()
        weighted: Tensor = self._config.orth_reg_weight * mean
        return weighted

    def after_update(self, step: int) -> None:
        if not self._allocates:
            return
        for name, weight in self._tuner.model.named_parameters():
            # A layer that the task does not use matters least; `peft` expects a gradient of it.
            if "lora_" in name and weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        self._tuner.update_and_allocate(step)

    def fit(self, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Put ranks that were kept into their places; the others begin without effect."""
        fitted = dict(tensors)
        for name, kept in (config.get("rank_pattern") or {}).items():
            path = name.removesuffix(".lora_E").removesuffix(".lora_E.default")
            mask = torch.tensor(kept)
            layer = self._tuner.model.get_submodule(path)
            for matrix in ("lora_A", "lora_B", "lora_E"):
                key = f"base_model.model.{path}.{matrix}"
                fresh = getattr(layer, matrix)["default"].detach().cpu().clone()
                if matrix == "lora_B":
                    fresh[:, mask] = tensors[key]
                else:
                    fresh[mask] = tensors[key]
                fitted[key] = fresh
        return fitted

    def weights_replaced(self) -> None:
        return

    def state_tensors(self) -> dict[str, Tensor]:
        allocator = self._allocator
        pattern = self._config.rank_pattern or {}
        return {
            **{_IMPORTANCE + name: tensor for name, tensor in allocator.exp_avg_ipt.items()},
            **{_UNCERTAINTY + name: tensor for name, tensor in allocator.exp_avg_unc.items()},
            **{_KEPT + name: torch.tensor(kept) for name, kept in pattern.items()},
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        allocator = self._allocator
        allocator.reset_ipt()
        pattern: dict[str, list[bool]] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(":")
            if kind + ":" == _KEPT:
                pattern[name] = tensor.tolist()
                continue
            place = allocator.exp_avg_ipt if kind + ":" == _IMPORTANCE else allocator.exp_avg_unc
            place[name] = tensor.to(self._tuner.device, copy=True)
            # It is computed anew in each step; only its being there counts.
            allocator.ipt[name] = place[name]
        self._config.rank_pattern = pattern or None
