"""A frozen base model in 4 or 8 bits while an adapter is trained on it.

Source: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314 (QLoRA). The arithmetic is that of
bitsandbytes: a layer's weights are brought back to the format of the activations whenever it is
computed. Embeddings, the output layer and heads stay as they are.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import nn

from app.domain.errors import InvalidInput
from app.domain.job_spec import Quantization

BASE_QUANTIZATION = "tunesmith.training.base_quantization"
# How `peft` is told which of its layers to take.
_MARKS: dict[Quantization, str] = {"nf4": "is_loaded_in_4bit", "int8": "is_loaded_in_8bit"}


class QuantizedLayers:
    """The linear layers of a model, quantized in place.

    Args:
        model: frozen.
        kept: names of modules that stay as they are: those that are trained whole.

    Raises:
        InvalidInput: the library is not installed, or the model has no linear layer.
    """

    def __init__(self, model: nn.Module, kind: Quantization, kept: Sequence[str] = ()) -> None:
        library = _library()
        output = getattr(model, "get_output_embeddings", lambda: None)()
        self._model = model
        self._kind = kind
        self._layers: dict[str, nn.Linear] = {}
        for path, layer in list(model.named_modules()):
            is_kept = any(path == name or path.startswith(f"{name}.") for name in kept)
            if type(layer) is nn.Linear and layer is not output and not is_kept:
                self._layers[path] = _quantized(library, kind, layer)
        if not self._layers:
            raise InvalidInput(
                "the base model has no linear layer that could be quantized",
                param=BASE_QUANTIZATION,
            )
        for path, layer in self._layers.items():
            _put(model, path, layer)
        setattr(model, _MARKS[kind], True)

    def restore(self, plain: nn.Module) -> None:
        """Put the layers of an unquantized model of the same kind back, below what adapts them.

        Args:
            plain: the same base model as it was loaded.
        """
        paths = {id(layer): path for path, layer in self._layers.items()}
        for module in list(self._model.modules()):
            for name, child in list(module.named_children()):
                if id(child) in paths:
                    setattr(module, name, plain.get_submodule(paths[id(child)]))
        setattr(self._model, _MARKS[self._kind], False)
        self._layers.clear()


def _library() -> Any:
    try:
        return import_module("bitsandbytes")
    except ImportError as error:
        raise InvalidInput(
            "a quantized base model needs the package bitsandbytes where the worker runs: install "
            "tunesmith[quantization] there, or leave base_quantization out",
            param=BASE_QUANTIZATION,
        ) from error


def _quantized(library: Any, kind: Quantization, layer: nn.Linear) -> nn.Linear:
    has_bias = layer.bias is not None
    weight = layer.weight.detach()
    made: Any
    if kind == "nf4":
        made = library.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=has_bias,
            compute_dtype=weight.dtype,
            quant_type="nf4",
            device="meta",
        )
        made.weight = library.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        # A layer that was once computed without gradients would be packed for that, and let no
        # gradient through ever after.
        made.support_avx512bf16_for_cpu = False
    else:
        made = library.nn.Linear8bitLt(
            layer.in_features,
            layer.out_features,
            bias=has_bias,
            has_fp16_weights=False,
            device="meta",
        )
        made.weight = library.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if has_bias:
        made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    try:
        # It is quantized on its way to the device.
        moved: nn.Linear = made.to(layer.weight.device)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise InvalidInput(
            f"this device cannot hold the base model in {kind}: {error}; leave base_quantization "
            "out",
            param=BASE_QUANTIZATION,
        ) from error
    return moved.requires_grad_(False)


def _put(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
