"""Record a finished run for git: ``python -m rsvlm.scoring.recording NAME`` copies its results to ``results/NAME/``."""

import argparse
import re
import shutil
import sys
from pathlib import Path

from rsvlm import paths
from rsvlm.files import fingerprint_file, read_json, whole_folder, write_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def record_run(name: str) -> Path:
    """The folder results/NAME, after metrics.json, table.md, params.yaml and provenance.json were put there, whole.

    An earlier record of the same name is replaced; git has it.

    Raises:
        ValueError: the name is no plain folder name, or the metrics hold no provenance.
        FileNotFoundError: a file of the run is missing; names it.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r}: a record's name may hold letters, digits, - and _ only")
    sources = {
        "metrics.json": paths.REPORTS / "metrics.json",
        "table.md": paths.TABLES / "comparison.md",
        "params.yaml": paths.PARAMS,
    }
    for path in sources.values():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: nothing to record; run the study first (`make study`)")
    metrics = read_json(sources["metrics.json"])
    if not isinstance(metrics, dict) or not isinstance(metrics.get("provenance"), dict):
        raise ValueError(f"{sources['metrics.json']}: no provenance; run the stage compare_with_paper again")
    details = {path.stem: fingerprint_file(path) for path in sorted(paths.METRICS.glob("*.json"))}
    files = {target: fingerprint_file(path) for target, path in sources.items()}
    with whole_folder(paths.RESULTS / name) as folder:
        for target, path in sources.items():
            shutil.copyfile(path, folder / target)
        write_json(
            folder / "provenance.json", metrics["provenance"] | {"sha256": files, "stage_metrics_sha256": details}
        )
    return paths.RESULTS / name


def main() -> int:
    """Record the run in place under the name on the command line; 0 when it was copied."""
    parser = argparse.ArgumentParser(description="Copy the finished run's results to results/NAME.")
    parser.add_argument("name", help="such as ucm_cpu")
    try:
        folder = record_run(parser.parse_args().name)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"recorded in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
