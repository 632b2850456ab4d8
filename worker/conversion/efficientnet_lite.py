"""EfficientNet-Lite0, as EfficientNet-PyTorch saves it, becomes a directory of transformers.

Transformers knows EfficientNet and not its Lite variant, which differs in three things: ReLU6 in
place of Swish, no squeeze-and-excitation, and pixels scaled to -1..1. The first and the last are
settings. The second is a gate that is always open: its weights are 0 and its bias is so large that
the sigmoid rounds to 1, so that the block's output is multiplied by exactly 1.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import EfficientNetConfig, EfficientNetForImageClassification
from transformers.models.efficientnet.image_processing_pil_efficientnet import (
    EfficientNetImageProcessorPil,
)

from worker.conversion.fetched import only_file

_LABELS = 1_000
_OPEN = 100.0  # sigmoid(100) is 1.0 in float32, and in bfloat16.

# Their names of a block's parts, and ours.
_PARTS = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
_AROUND = {
    "_conv_stem": "efficientnet.embeddings.convolution",
    "_bn0": "efficientnet.embeddings.batchnorm",
    "_conv_head": "efficientnet.encoder.top_conv",
    "_bn1": "efficientnet.encoder.top_bn",
    "_fc": "classifier",
}


def convert(fetched: Path, into: Path) -> None:
    """Write the one `*.pth` as safetensors, with its image processor. See the package."""
    weights = only_file(fetched, "*.pth")
    # Tensors and nothing else: any other object in the file is refused.
    theirs = torch.load(weights, map_location="cpu", weights_only=True)
    config = EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1_280,
        hidden_act="relu6",
        batch_norm_eps=1e-3,
        dropout_rate=0.2,
        image_size=224,
    )
    config.num_labels = _LABELS
    model = EfficientNetForImageClassification(config)
    model.load_state_dict(_renamed(theirs) | _open_gates(model))
    model.save_pretrained(into)
    _image_processor().save_pretrained(into)


def _renamed(theirs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {_name(name): value for name, value in theirs.items()}


def _name(name: str) -> str:
    if not name.startswith("_blocks."):
        part, _, rest = name.partition(".")
        return f"{_AROUND[part]}.{rest}"
    _, number, part, rest = name.split(".", 3)
    return f"efficientnet.encoder.blocks.{number}.{_PARTS[part]}.{rest}"


def _open_gates(model: EfficientNetForImageClassification) -> dict[str, torch.Tensor]:
    gates = {
        name: torch.zeros_like(value)
        for name, value in model.state_dict().items()
        if ".squeeze_excite." in name
    }
    for name, value in gates.items():
        if name.endswith(".expand.bias"):
            value.fill_(_OPEN)
    return gates


def _image_processor() -> EfficientNetImageProcessorPil:
    # The middle 224 of 256 pixels, and (pixel - 127) / 128, as in its training.
    return EfficientNetImageProcessorPil(
        do_resize=True,
        size={"shortest_edge": 256},
        resample=3,
        do_center_crop=True,
        crop_size={"height": 224, "width": 224},
        do_rescale=True,
        rescale_factor=1 / 255,
        rescale_offset=False,  # This and `include_top` would scale a second time.
        do_normalize=True,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
        include_top=False,
    )
