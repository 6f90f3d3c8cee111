"""``python -m rsvlm.data``: list the known sources, get one, audit a folder of them, render the cards."""

import argparse
import sys
from pathlib import Path

from rsvlm.data.aggregate import audit_sources
from rsvlm.data.cards import render_cards, renew_cards
from rsvlm.data.catalogue import KNOWN
from rsvlm.data.downloads import DownloadError, get_source
from rsvlm.data.overlap import search_scope
from rsvlm.data.table import load_table
from rsvlm.files import read_json, write_json, write_json_lines
from rsvlm.paths import AGGREGATED, REPORTS, ROOT

RAW = ROOT / "data" / "raw"


def audit_folder(data_root: Path, spelling: bool, same_ground: bool) -> tuple[list[dict], dict]:
    """Rows and report of every known source whose annotations lie in a folder.

    Sources without images, or with some missing, are compared by their captions.

    Raises:
        FileNotFoundError: no known source is there.
    """
    sources = []
    for name, known in KNOWN.items():
        annotations = known.settings.get("annotations")
        files = annotations.values() if isinstance(annotations, dict) else [annotations]
        if annotations and all((data_root / file).is_file() for file in files):
            sources.append({"name": name, **known.settings})
    if not sources:
        raise FileNotFoundError(f"{data_root}: holds the annotations of no known source; known: {', '.join(KNOWN)}")
    return audit_sources(sources, data_root=str(data_root), find_same_ground=same_ground, check_spelling=spelling)


def main(arguments: list[str] | None = None) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m rsvlm.data", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the known sources, what is published about them, and their official places")
    get = commands.add_parser("get", help="fetch a source into data/raw; nothing is fetched without this command")
    get.add_argument("name", metavar="NAME", help=f"one of: {', '.join(KNOWN)}")
    get.add_argument("--raw", type=Path, default=RAW, help="folder of raw data (data/raw)")
    audit = commands.add_parser("audit", help="audit every known source in a folder: report, near-duplicates, counts, spelling")
    audit.add_argument("data_root", type=Path)
    audit.add_argument("--out", type=Path, default=REPORTS / "audit")
    audit.add_argument("--no-spelling", action="store_true", help="go without the extra audit's dictionary")
    audit.add_argument("--no-same-ground", action="store_true", help="go without the search by local features")
    audit.add_argument("--cards", action="store_true", help="fill data_cards/ with what was found")
    cards = commands.add_parser("cards", help="fill data_cards/ anew from data_cards/measured/")
    cards.add_argument("--study", action="store_true", help="first measure anew what the study in place aggregated")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "list":
            for name, known in KNOWN.items():
                counts = (
                    f"{known.images:,} images, {known.captions:,} captions" if known.images else "made by the study"
                )
                print(f"{name:12} {known.title}: {counts}; {known.place}")
        elif chosen.command == "get":
            get_source(chosen.name, chosen.raw)
        elif chosen.command == "audit":
            rows, report = audit_folder(
                chosen.data_root.resolve(), not chosen.no_spelling, not chosen.no_same_ground
            )
            write_json_lines(chosen.out / "twins.jsonl", report["twins"].pop("list"))
            write_json(chosen.out / "report.json", report)
            print(f"written: {chosen.out}; pairs of near-duplicates: {report['twins']['pairs']}")
            for kind, scope in search_scope(report["twins"]["same_ground"]).items():
                counts = report["twins"]["by_kind"][kind]
                print(
                    f"  {kind}: {counts['pairs']}, of them {counts['train_and_test']} between training and test; {scope}"
                )
            if chosen.cards:
                print(f"cards filled: {', '.join(renew_cards(rows, report))}")
        elif chosen.study:
            renewed = renew_cards(load_table().to_dict("records"), read_json(AGGREGATED / "report.json"))
            print(f"cards filled: {', '.join(renewed)}")
        else:
            render_cards()
    except (ValueError, FileNotFoundError, ModuleNotFoundError, DownloadError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
