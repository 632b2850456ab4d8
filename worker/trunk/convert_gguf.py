"""Convert a GGUF file to an ordinary safetensors directory, once, when a base model is installed.

    python -m worker.trunk.convert_gguf <file.gguf> <directory>

Loading a GGUF takes about sixty times as long as loading safetensors, and transformers will not
save a model that it still holds as GGUF-quantised: the weights move into a plain model first.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(gguf: Path, into: Path) -> None:
    """Write `gguf`, dequantised to bfloat16, and its tokenizer into a directory."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.to(torch.bfloat16).save_pretrained(into)  # type: ignore[arg-type]
    tokenizer.save_pretrained(into)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
