"""``python -m rsvlm.data``: list the known sources, get one, audit a folder of them, render the cards.

Relative paths, the defaults too, start from the working directory.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rsvlm.data.aggregate import TABLE, audit_sources
from rsvlm.data.audit import english_dictionary, search_scope
from rsvlm.data.cards import render_cards, renew_cards
from rsvlm.data.catalogue import KNOWN, DownloadError, get_source
from rsvlm.data.spill import Made
from rsvlm.data.table import load_table
from rsvlm.files import read_json, write_json, write_json_lines

CARDS, AGGREGATED, RAW, AUDIT = Path("data_cards"), Path("data/aggregated"), Path("data/raw"), Path("reports/audit")


def known_sources(data_root: Path) -> list[dict]:
    """Settings of every known source whose annotations lie in a folder.

    Raises:
        NotADirectoryError: there is no such folder.
        FileNotFoundError: no known source is there.
    """
    if not data_root.is_dir():
        raise NotADirectoryError(f"{data_root}: no such folder")
    sources = []
    for name, known in KNOWN.items():
        annotations = known.settings.get("annotations")
        files = annotations.values() if isinstance(annotations, dict) else [annotations]
        if annotations and all((data_root / file).is_file() for file in files):
            sources.append({"name": name, **known.settings})
    if not sources:
        raise FileNotFoundError(
            f"{data_root}: holds the annotations of no known source; known: {', '.join(KNOWN)}. data/raw/README.md has "
            "the files' names; FOLDER is the one above a source's own folder"
        )
    return sources


def rows_of_study(source: str) -> Sequence[dict]:
    """A source's rows of the study in place, as its card needs them."""
    if source not in set(load_table(AGGREGATED / TABLE, columns=["source"])["source"]):
        return []  # it was only compared
    own = load_table(AGGREGATED / TABLE, columns=["image_id", "split", "captions"], source=source)
    columns = {name: own[name].array for name in own}
    return Made(len(own), lambda place: {name: values[place] for name, values in columns.items()})


def check_cards() -> None:
    """NotADirectoryError where the working directory holds no cards to fill."""
    if not CARDS.is_dir():
        raise NotADirectoryError(f"{CARDS}: no such folder here; the cards are filled in the project's root")


def check_writable(folder: Path, remedy: str) -> None:
    """Make a folder and write to it, so that this fails now rather than after the work.

    Raises:
        OSError: it cannot be written to; names it and the remedy.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{folder}: cannot be written to ({error.strerror}); {remedy}") from error


def main(arguments: list[str] | None = None) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m rsvlm.data", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the known sources, what is published about them, and their official places")
    get = commands.add_parser("get", help="fetch a source into data/raw; nothing is fetched without this command")
    get.add_argument("name", metavar="NAME", help=f"one of: {', '.join(KNOWN)}")
    get.add_argument("--raw", type=Path, default=RAW, help=f"folder of raw data ({RAW})")
    audit = commands.add_parser(
        "audit", help="audit every known source in a folder: report, near-duplicates, counts, spelling"
    )
    audit.add_argument("data_root", type=Path)
    audit.add_argument("--out", type=Path, default=AUDIT, help=f"folder of the report ({AUDIT})")
    audit.add_argument("--no-spelling", action="store_true", help="go without the dictionary of the extra `audit`")
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
            data_root = chosen.data_root.resolve()
            sources = known_sources(data_root)
            if not chosen.no_spelling:
                english_dictionary("leave the spelling out: --no-spelling")
            check_writable(chosen.out, "name another folder: --out FOLDER")
            if chosen.cards:
                check_cards()
                check_writable(CARDS, "leave --cards out")
            # Without images, or with some missing, a source is compared by its captions.
            rows, report = audit_sources(
                sources,
                data_root=str(data_root),
                find_same_ground=not chosen.no_same_ground,
                check_spelling=not chosen.no_spelling,
            )
            write_json_lines(chosen.out / "near_duplicates.jsonl", report["near_duplicates"].pop("list"))
            write_json(chosen.out / "report.json", report)
            print(f"written: {chosen.out}; pairs of near-duplicates: {report['near_duplicates']['pairs']}")
            for kind, scope in search_scope(report["near_duplicates"]["same_ground"]).items():
                counts = report["near_duplicates"]["by_kind"][kind]
                print(
                    f"  {kind}: {counts['pairs']}, of them {counts['train_and_test']} between training and test; {scope}"
                )
            if chosen.cards:
                print(f"cards filled: {', '.join(renew_cards(rows.of, report, CARDS))}")
        elif chosen.study:
            check_cards()
            renewed = renew_cards(rows_of_study, read_json(AGGREGATED / "report.json"), CARDS)
            print(f"cards filled: {', '.join(renewed)}")
        else:
            check_cards()
            render_cards(CARDS)
    except (ValueError, OSError, ModuleNotFoundError, DownloadError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
