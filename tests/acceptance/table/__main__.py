"""Run the whole table and print it as Markdown: `make acceptance`."""

import argparse
import os
import tempfile
from pathlib import Path

from tests.acceptance.table.rows import ROWS
from tests.acceptance.table.run import Result, run
from tests.support.service import REPOSITORY, running_service

SECONDS_A_MINUTE = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="names of rows", metavar="ROW")
    chosen = parser.parse_args().only
    models_dir = os.environ.get("MODELS_DIR") or REPOSITORY / ".tunesmith" / "models"
    results: list[Result] = []
    with (
        tempfile.TemporaryDirectory() as data_dir,
        running_service("up", Path(data_dir), {"MODELS_DIR": str(models_dir)}) as service,
        service.client() as client,
        service.http(service.key) as http,
    ):
        print("| row | task | model | data | metric | base | tuned | asked for | minutes |")
        print("|---|---|---|---|---|---|---|---|---|")
        for row in ROWS:
            if chosen and row.name not in chosen:
                continue
            result = run(client, http, row, row.full)
            results.append(result)
            print(line(result), flush=True)
    failed = [result.row.name for result in results if not result.is_enough]
    if failed:
        raise SystemExit(f"did not gain what is asked for: {', '.join(failed)}")


def line(result: Result) -> str:
    row, size = result.row, result.size
    asked = f"{size.margin:g} better" + (f", {size.bar:g}" if size.bar is not None else "")
    return (
        f"| {row.name} | {row.task} | {row.model} | {row.data}: {size.train:,} + {size.heldout:,} "
        f"| {row.metric} | {result.base:.3f} | **{result.tuned:.3f}** | {asked} "
        f"| {result.seconds / SECONDS_A_MINUTE:.1f} |"
    )


if __name__ == "__main__":
    main()
