"""Registry of converters by name: what turns fetched files into a directory of safetensors.

Converting needs torch, which this side of the house never imports. The dotted paths are for the
process that does it, `python -m worker.conversion`.
"""

import subprocess
import sys
from pathlib import Path

from app.domain.errors import Unavailable
from app.domain.registry import Registry

CONVERTERS: Registry[str] = Registry("converter")
CONVERTERS.add("gguf", "worker.conversion.gguf:convert")
CONVERTERS.add("efficientnet_lite", "worker.conversion.efficientnet_lite:convert")
CONVERTERS.add("ctranslate2_whisper", "worker.conversion.ctranslate2_whisper:convert")
CONVERTERS.add("encoder_decoder", "worker.conversion.encoder_decoder:convert")

_COMMAND = "worker.conversion"


def convert(name: str, fetched: Path, into: Path) -> None:
    """Run a converter on the files in one directory; it writes the model into an empty one.

    Raises:
        Unavailable: it did not succeed; the message ends with its reason.
    """
    command = [sys.executable, "-m", _COMMAND, CONVERTERS[name], str(fetched), str(into)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1:] or [f"exit status {result.returncode}"]
        raise Unavailable(f"cannot convert to safetensors with {name!r}: {reason[0]}")
