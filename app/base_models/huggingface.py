"""`hf:<owner>/<repository>`: a model of the Hugging Face hub, the ordinary way with internet.

HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean everywhere.
"""

from pathlib import Path

from app.domain.errors import InvalidInput, Unavailable

_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def fetch(reference: str, revision: str, sha256: str | None, into: Path) -> None:
    """Download a snapshot of the repository. See `sources.Source`."""
    if reference.count("/") != 1:
        raise InvalidInput(f"hf:{reference}: expected hf:<owner>/<repository>")
    try:
        # Only the worker and the engine have the hub's client; the API never fetches.
        from huggingface_hub import snapshot_download  # noqa: PLC0415
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415
    except ImportError:
        raise Unavailable("fetching from the hub needs: pip install 'tunesmith[ml]'") from None
    try:
        snapshot = snapshot_download(reference, revision=revision, allow_patterns=_WANTED)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Unavailable(
            f"cannot fetch hf:{reference} at {revision}: {reason} "
            "(is HF_HUB_OFFLINE set, or does the repository need HF_TOKEN?)"
        ) from None
    for path in Path(snapshot).iterdir():
        if path.is_file():
            (into / path.name).symlink_to(path.resolve())
