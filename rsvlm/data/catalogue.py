"""The known sources: what is published about each, where it officially lies, and how its files are fetched.

``known_sources.json`` holds the facts. Its numbers are those of the papers (Cheng et al. 2022, Lu et al. 2018, Qu et al.
2016, Yuan et al. 2021, Liu et al. 2023); the audit holds the files against them. A source's files are fetched only when
asked, from its official place, checked, resumed and unpacked safely. A checksum stands in the facts only where a public
project pins it, which is named; where none is known, the first download's SHA-256 is recorded in
``data/raw/NAME.downloads.json`` and every later one must equal it; the record says which of the two it was.
"""

import hashlib
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path, PurePosixPath

import requests

from rsvlm.files import read_json, write_json
from rsvlm.settings import closest_name


@dataclass(frozen=True)
class Download:
    """One file of a source. ``unpack_to`` is a folder below the source's; None leaves the file as it is.

    ``checksum`` is ``md5:...`` or ``sha256:...``, pinned by ``pinned_by``; None is recorded at the first download.
    """

    url: str
    file: str
    checksum: str | None = None
    pinned_by: str | None = None
    unpack_to: str | None = None
    strip: str = ""  # leading folder of the archive that is dropped while unpacking


@dataclass(frozen=True)
class KnownSource:
    """A published data set. Counts are None where nothing is published."""

    title: str
    cite: str
    card: str  # file name in data_cards/ without its extension
    images: int | None
    captions: int | None
    splits: Mapping[str, int] = field(default_factory=dict)
    image_size: str = "different"
    resolution: str = "different"
    metres_a_pixel: float | None = None
    licence: str = "not stated with the files; ask the authors"
    place: str = ""  # the official page
    by_hand: str = ""  # what has to be fetched by a person, and put where
    downloads: tuple[Download, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)  # a Source's, below data/raw
    imagery: str = ""  # who took the pictures
    area: str = ""  # where on Earth
    published: str = "2026"  # year
    bias: str = ""  # of the places
    sampling: str = ""  # how images were chosen


def _load_known() -> dict[str, KnownSource]:
    facts = json.loads((files("rsvlm.data") / "known_sources.json").read_text(encoding="utf-8"))
    for own in facts.values():
        own["downloads"] = tuple(Download(**one) for one in own.get("downloads", ()))
    return {name: KnownSource(**own) for name, own in facts.items()}


KNOWN = _load_known()
# RemoteCLIP's mixture as its table gives it; the parts add up to 165,561 images, not to the 165,745 of its text.
REMOTECLIP = {
    "RET-3": {"RSICD": 8_483, "RSITMD": 3_603, "UCM": 1_676},
    "DET-10": {
        "AU-AIR": 32_823, "CARPK": 1_568, "DIOR": 23_463, "DOTA": 1_409, "HRRSD": 21_761, "HRSC": 1_055, "LEVIR": 3_791,
        "RSOD": 936, "Stanford Drone": 17_351, "VisDrone": 6_471,
    },
    "SEG-4": {"iSAID": 30_821, "LoveDA": 4_187, "Potsdam": 5_421, "Vaihingen": 742},
}  # fmt: skip
REMOTECLIP_IMAGES, REMOTECLIP_CAPTIONS = 165_745, 828_725
CAP4 = ("nwpu", "rsicd", "sydney", "ucm")


CHUNK = 1 << 16  # bytes at a time
TIMEOUT = (20, 60)  # seconds to connect, and between two pieces
MOST_FILES, MOST_BYTES = 500_000, 60 * 10**9  # an archive that unpacks to more is refused
MOST_RATIO = 200  # unpacked by packed bytes of one entry; imagery packs by less than 3


class DownloadError(RuntimeError):
    """A file could not be fetched or is not what it should be; the message says what to do."""


def get_source(name: str, raw: Path, log: Callable[[str], None] = print) -> Path:
    """The folder of a source below ``raw``, after all that can be fetched for it was fetched and unpacked.

    Args:
        name: of a known source, or a card's name.
        raw: folder of raw data; the source's is ``raw/CARD``.
        log: takes a line a step.

    Raises:
        ValueError: no such source; names the closest.
        DownloadError: no network, a server's error, a wrong checksum, an unsafe archive.
    """
    _, known = find_known(name)
    folder = raw / known.card
    record_file = raw / f"{known.card}.downloads.json"
    record = read_json(record_file) if record_file.is_file() else {}
    for download in known.downloads:
        file = folder / download.file
        expected = download.checksum or record.get(download.file, {}).get("checksum")
        try:
            fetch_file(download.url, file, expected, log)
        except requests.RequestException as error:
            raise DownloadError(offline_message(known, raw, error)) from error
        if download.checksum is None and expected is None:
            expected = f"sha256:{digest_of(file, 'sha256')}"
            log(f"{file.name}: no published checksum is known; recorded {expected}, which later downloads must equal")
        record[download.file] = {
            "url": download.url,
            "checksum": expected,
            "pinned_by": download.pinned_by or "the first download here",
            "bytes": file.stat().st_size,
        }
        write_json(record_file, record)
        if download.unpack_to is not None:
            count = unpack_safely(file, folder / download.unpack_to, download.strip)
            log(f"{file.name}: {count:,} files unpacked into {folder / download.unpack_to}")
    if known.by_hand:
        log(f"{known.title}: by hand from {known.place}: {known.by_hand}")
    log(f"{known.title}: {known.licence}. Nothing alters these files; `dvc add {folder}` records them as they are.")
    return folder


def find_known(name: str) -> tuple[str, KnownSource]:
    """The catalogue's key and entry of a source, by key or card.

    Raises:
        ValueError: no such source; names the closest.
    """
    for key, known in KNOWN.items():
        if name in (key, known.card):
            return key, known
    raise ValueError(f"no known source {name!r}{closest_name(name, KNOWN)}")


def offline_message(known: KnownSource, raw: Path, error: Exception | None = None) -> str:
    """What a person has to bring, and where to put it."""
    lines = [f"{known.title}: could not be fetched ({error})." if error else f"{known.title}:"]
    lines += [f"  {download.url}\n    as {raw / known.card / download.file}" for download in known.downloads]
    lines.append(f"  by hand, from {known.place}: {known.by_hand}" if known.by_hand else f"  from {known.place}")
    lines.append(
        f"Put them below {raw / known.card} on a machine with network, copy that folder here, and run this again."
    )
    return "\n".join(lines)


def fetch_file(url: str, file: Path, checksum: str | None, log: Callable[[str], None] = print) -> None:
    """Fetch one file; what a broken download left is gone on with, a whole file with the right checksum is kept.

    Args:
        checksum: ``md5:HEX`` or ``sha256:HEX``; None takes whatever comes.

    Raises:
        requests.RequestException: no network, or the server's error.
        DownloadError: the checksum is wrong; the file is kept aside.
    """
    if file.is_file():
        if checksum is None or _matches(file, checksum):
            log(f"{file.name}: is there already")
            return
        raise DownloadError(f"{file}: is there, but its checksum is not {checksum}; remove it and run this again")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # nothing is missing behind what is there
            log(f"{file.name}: was fetched to its end before")
        else:
            answer.raise_for_status()
            resumed = answer.status_code == 206
            log(f"{file.name}: {'going on at' if resumed else 'fetching, from'} byte {have if resumed else 0:,}")
            _check_room(part, int(answer.headers.get("Content-Length") or 0))
            with part.open("ab" if resumed else "wb") as target:
                for piece in answer.iter_content(CHUNK):
                    target.write(piece)
                target.flush()
                os.fsync(target.fileno())
            length, came = int(answer.headers.get("Content-Length") or 0), part.stat().st_size
            if not resumed and came < length:
                raise DownloadError(f"{part}: the connection ended at byte {came:,} of {length:,}; run this again")
    if checksum is not None and not _matches(part, checksum):
        wrong = file.with_name(f"{file.name}.wrong")
        os.replace(part, wrong)
        raise DownloadError(
            f"{url}: what came does not have the checksum {checksum}; it is kept as {wrong.name}. Either the file was "
            "changed at its place, or it was damaged on the way: remove it and try again, or fetch it by hand"
        )
    os.replace(part, file)


def unpack_safely(archive: Path, folder: Path, strip: str = "") -> int:
    """How many files a ZIP archive held, after they were unpacked below ``folder``. Files that are there are kept.

    Every entry is checked before the first is written.

    Args:
        strip: leading folder that is dropped from the entries' names.

    Raises: DownloadError: no ZIP file; an entry that leads out of the folder or is a link; too many files or bytes; an
        entry that grows out of all proportion.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = [entry for entry in packed.infolist() if not entry.is_dir()]
            _check_entries(archive, entries)
            _check_room(folder, sum(entry.file_size for entry in entries))
            for entry in entries:
                target = folder / entry.filename.removeprefix(f"{strip}/" if strip else "")
                if target.is_file() and target.stat().st_size == entry.file_size:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f".{target.name}.part")
                with packed.open(entry) as source, part.open("wb") as file:  # the checksum of each entry is checked
                    shutil.copyfileobj(source, file, CHUNK)
                os.replace(part, target)
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{archive}: not a whole ZIP archive: {error}; remove it and fetch it again") from error
    return len(entries)


def _check_entries(archive: Path, entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MOST_FILES or sum(entry.file_size for entry in entries) > MOST_BYTES:
        raise DownloadError(
            f"{archive}: unpacks to {len(entries):,} files of {sum(e.file_size for e in entries):,} bytes; at most "
            f"{MOST_FILES:,} files of {MOST_BYTES:,} bytes are unpacked"
        )
    for entry in entries:
        name = entry.filename
        parts = PurePosixPath(name).parts
        if name.startswith("/") or "\\" in name or ":" in parts[0] or ".." in parts:
            raise DownloadError(f"{archive}: the entry {name!r} leads out of the folder; nothing was unpacked")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise DownloadError(f"{archive}: the entry {name!r} is a link; nothing was unpacked")
        if entry.file_size > MOST_RATIO * max(entry.compress_size, 1) and entry.file_size > 1_000_000:
            raise DownloadError(f"{archive}: the entry {name!r} grows {MOST_RATIO}-fold; nothing was unpacked")


def _check_room(place: Path, needed: int) -> None:
    """DownloadError when the disk has too little room."""
    existing = next(parent for parent in (place, *place.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DownloadError(f"{place}: {needed:,} bytes are needed, {free:,} are free on this disk")


def digest_of(file: Path, kind: str) -> str:
    """The checksum of a file, as hex; ``kind`` is a name of hashlib's."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, kind).hexdigest()


def _matches(file: Path, checksum: str) -> bool:
    kind, _, value = checksum.partition(":")
    return digest_of(file, kind) == value
