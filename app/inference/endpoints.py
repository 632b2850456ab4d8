"""Where the engines of an installation are: `ENGINE_URL` read as a list.

    ENGINE_URL=http://a:8001,http://b:8001?base=qwen3-8b,vllm+http://c:8000

A prefix says of which kind an engine is; without one, ENGINE_KIND does. `base` names a base model
that the engine is kept for, and may be repeated; without it, it takes any.
"""

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from app.domain.errors import InvalidInput
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One engine.

    Attributes:
        url: also its name, wherever engines are told apart.
        base_models: ids of the base models that it is kept for; none means any.
    """

    kind: str
    url: str
    base_models: frozenset[str] = frozenset()


def endpoints(settings: Settings) -> list[Endpoint]:
    """Return the engines that the settings name, in their order.

    Raises:
        InvalidInput: ENGINE_URL is not such a list; the message says what is wrong.
    """
    found = [
        _endpoint(text.strip(), settings.engine_kind)
        for text in settings.engine_url.split(",")
        if text.strip()
    ]
    if not found:
        raise InvalidInput("ENGINE_URL names no engine")
    urls = [one.url for one in found]
    if twice := next((url for url in urls if urls.count(url) > 1), None):
        raise InvalidInput(f"ENGINE_URL names {twice} twice")
    return found


def _endpoint(text: str, default_kind: str) -> Endpoint:
    parts = urlsplit(text)
    kind, _, scheme = parts.scheme.rpartition("+")
    options = parse_qsl(parts.query, keep_blank_values=True)
    unknown = [name for name, value in options if name != "base" or not value]
    is_odd = parts.fragment or parts.username or parts.password or unknown
    if scheme not in ("http", "https") or not parts.hostname or is_odd:
        raise InvalidInput(
            "ENGINE_URL must be a list of [<kind>+]http://<host>:<port>[?base=<base model>], "
            f"separated by commas; found {text!r}"
        )
    url = parts._replace(scheme=scheme, query="").geturl().rstrip("/")
    return Endpoint(kind or default_kind, url, frozenset(value for _, value in options))
