"""Entry of the engine process: `python -m worker.serving.server`, or `tunesmith engine`."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from app.access_log import leave_out
from app.base_models import InstalledBaseModel, ensure_installed, load_catalogue
from app.domain.errors import DomainError
from app.lifeline import VARIABLE, hold_lifeline
from app.settings import load_settings
from worker.serving.app import create_app
from worker.serving.settings import load_engine_settings
from worker.serving.trunk_loading import trunk_loader
from worker.trunk.device import probe_device

# What every API process asks all the time: app/inference/openai_http.py.
_ASKED_BY_THE_API = frozenset({"/health", "/v1/models", "/v1/engine/stats"})


def main() -> None:
    """Serve until SIGTERM; running answers then have `ENGINE_GRACE_SECONDS` to end."""
    arguments = _arguments()
    # Uvicorn passes the signal on once it has shut down: a requested end is not a failure.
    signal.signal(signal.SIGTERM, _exit)
    if arguments.exit_with_stdin:
        os.environ[VARIABLE] = "1"
    hold_lifeline()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    leave_out(_ASKED_BY_THE_API)
    settings = load_engine_settings()
    profile = probe_device(is_for_answers=True)
    logging.getLogger(__name__).info("device: %s", profile)

    common = load_settings()
    uvicorn.run(
        create_app(
            settings,
            find_in_catalogue(common.catalogue_path, common.models_dir),
            trunk_loader(settings.weights, profile),
            profile,
        ),
        host=arguments.host or settings.host,
        port=arguments.port or settings.port,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=settings.grace_seconds,
    )


def find_in_catalogue(
    catalogue_path: Path, models_dir: Path
) -> Callable[[str], InstalledBaseModel]:
    """Return a function that finds a base model by its id or name, and fetches it if need be.

    The catalogue is read anew each time: an operator may add to it while the engine runs.
    """

    def find(name: str) -> InstalledBaseModel:
        catalogue = load_catalogue(catalogue_path)
        by_name = {model.name: model for model in catalogue.models.values()}
        model = catalogue.models.get(name) or by_name.get(name) or catalogue.get(name)
        return ensure_installed(model, models_dir)

    return find


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", help="address to listen on (default: ENGINE_HOST, or 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port (default: ENGINE_PORT, or 8001)")
    parser.add_argument(
        "--exit-with-stdin",
        action="store_true",
        help="end when standard input does: whoever holds its other end has died",
    )
    return parser.parse_args()


def _exit(signum: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    try:
        main()
    except DomainError as error:
        sys.exit(f"tunesmith engine: {error.message}")
