"""The known sources: what is published about each, where it officially lies, and how its files are fetched.

``known_sources.json`` holds the facts. Its numbers are those of the papers (Cheng et al. 2022, Lu et al. 2018, Qu et al.
2016, Yuan et al. 2021, Liu et al. 2023); the audit holds the files against them. A source's files are fetched only when
asked, from its official place, checked, resumed and unpacked safely. A checksum stands in the facts only where a public
project pins it, which is named; where none is known, the first download's SHA-256 is recorded in
``data/raw/NAME.downloads.json`` and every later one must equal it; the record says which of the two it was.
"""

import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path, PurePosixPath

import requests

from rsvlm.files import read_json, write_json
from rsvlm.safe_text import fault_in
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
MOST_RATIO = 200  # unpacked by packed bytes, of one entry and of all; imagery packs by less than 3
SMALL = 1_000_000  # bytes that may grow as they like
LONGEST_NAME = 240  # bytes; file systems take 255, and what is being written has ".part" behind its name
ENCRYPTED = 0x1  # flag of an entry
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    ValueError,
    NotImplementedError,
)


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
        if download.unpack_to is not None:  # before it is recorded: a page that came instead would be pinned for ever
            count = unpack_safely(file, folder / download.unpack_to, download.strip)
            log(f"{file.name}: {count:,} files unpacked into {folder / download.unpack_to}")
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
        start, total = _range_of(answer)
        ended = answer.status_code == 416 and have and (have == total or total is None and checksum is not None)
        if not ended and answer.status_code in (206, 416) and start != have:
            if not have:
                raise DownloadError(
                    f"{url}: the server sends a part of the file that was not asked for; fetch it by hand"
                )
            log(f"{file.name}: the server does not go on at byte {have:,}; fetching it anew")
            part.unlink()
            return fetch_file(url, file, checksum, log)
        if ended:  # nothing is missing behind what is there
            log(f"{file.name}: was fetched to its end before")
        else:
            answer.raise_for_status()
            _check_kind(answer, url, file)
            log(f"{file.name}: {'going on at' if start else 'fetching, from'} byte {start:,}")
            _check_room(part, (total or start) - start)
            with part.open("ab" if start else "wb") as target:
                for piece in answer.iter_content(CHUNK):
                    target.write(piece)
                target.flush()
                os.fsync(target.fileno())
            came = part.stat().st_size
            if total is not None and came != total:
                if came > total:
                    part.unlink()
                raise DownloadError(f"{part}: {came:,} bytes came, {total:,} were promised; run this again")
    if checksum is not None and not _matches(part, checksum):
        wrong = file.with_name(f"{file.name}.wrong")
        os.replace(part, wrong)
        raise DownloadError(
            f"{url}: what came does not have the checksum {checksum}; it is kept as {wrong.name}. Either the file was "
            "changed at its place, or it was damaged on the way: remove it and try again, or fetch it by hand"
        )
    os.replace(part, file)


def _range_of(answer: requests.Response) -> tuple[int, int | None]:
    """Where in the file an answer's bytes begin, and how many bytes the whole file has; None: it does not say.

    A partial answer that does not say where it begins (RFC 9110, 14.4) begins at -1.
    """
    packed = answer.headers.get("Content-Encoding", "identity") != "identity"  # its length is that of what is packed
    length = answer.headers.get("Content-Length", "")
    length = int(length) if length.isdecimal() and not packed else None
    told = RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status_code not in (206, 416):
        return 0, length
    start = int(told[1]) if told and told[1] else -1
    if told and told[2].isdecimal():
        return start, int(told[2])
    return start, None if length is None or start < 0 else start + length


def _check_kind(answer: requests.Response, url: str, file: Path) -> None:
    """DownloadError where a web page came instead of a file."""
    kind = answer.headers.get("Content-Type", "")
    if kind.lower().startswith("text/html") and file.suffix.lower() not in (".html", ".htm"):
        raise DownloadError(
            f"{url}: a web page came instead of {file.name} ({kind}), as where a quota is used up or one must log in; "
            "nothing was kept: try again later, or fetch it by hand"
        )


def unpack_safely(archive: Path, folder: Path, strip: str = "") -> int:
    """How many files a ZIP archive held, after they were unpacked below ``folder``. Files that are there are kept.

    Every entry is checked before the first is written.

    Args:
        strip: leading folder that is dropped from the entries' names.

    Raises: DownloadError: no ZIP file, or a damaged one; an entry that leads out of the folder, is a link, encrypted or
        packed by another method, or has a name that cannot be; two entries of one place; too many files or bytes; an
        entry, or all of them, that grow out of all proportion; a file that cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = _check_entries(archive, packed.infolist(), strip)
            _check_room(folder, sum(entry.file_size for entry in entries.values()))
            for name, entry in entries.items():
                target = folder / name
                if not (target.is_file() and target.stat().st_size == entry.file_size):
                    _unpack(packed, entry, target)
    except _DAMAGED as error:
        raise DownloadError(f"{archive}: not a whole ZIP archive: {error}; remove it and fetch it again") from error
    except OSError as error:
        if error.errno is None:  # what bzip2 says of damaged data
            raise DownloadError(f"{archive}: not a whole ZIP archive: {error}; remove it and fetch it again") from error
        raise DownloadError(
            f"{archive}: cannot be unpacked: {error.filename2 or error.filename or folder}: {error.strerror}; mend that, "
            "and run this again"
        ) from error
    return len(entries)


def _unpack(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        with packed.open(entry) as source, part.open("wb") as file:  # the checksum of each entry is checked
            shutil.copyfileobj(source, file, CHUNK)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _check_entries(archive: Path, listed: list[zipfile.ZipInfo], strip: str) -> dict[str, zipfile.ZipInfo]:
    """Place below the folder -> the entry that goes there, of those that are files."""
    listed = [entry for entry in listed if not entry.is_dir()]
    size, packed = sum(entry.file_size for entry in listed), archive.stat().st_size
    if len(listed) > MOST_FILES or size > MOST_BYTES:
        raise DownloadError(
            f"{archive}: unpacks to {len(listed):,} files of {size:,} bytes; at most {MOST_FILES:,} files of "
            f"{MOST_BYTES:,} bytes are unpacked"
        )
    if size > MOST_RATIO * packed and size > SMALL:
        raise DownloadError(
            f"{archive}: its {packed:,} bytes grow {MOST_RATIO}-fold, to {size:,}; nothing was unpacked"
        )
    entries = {}
    for entry in listed:
        name = entry.filename.removeprefix(f"{strip}/" if strip else "")
        place = PurePosixPath(name).as_posix()
        fault = _fault_of(entry, name) or ("stands there twice" if place in entries else None)
        if fault:
            raise DownloadError(f"{archive}: the entry {entry.filename!r} {fault}; nothing was unpacked")
        entries[place] = entry
    for name in entries:
        above = next((place for place in map(str, PurePosixPath(name).parents) if place in entries), None)
        if above:
            raise DownloadError(
                f"{archive}: {above!r} is a file, and {name!r} needs a folder there; nothing was unpacked"
            )
    return entries


def _fault_of(entry: zipfile.ZipInfo, name: str) -> str | None:
    """Why an entry is not unpacked, ``name`` below the folder, in words; None if it is."""
    for given in (entry.filename, name):  # without the leading folder it may be another kind of name
        parts = PurePosixPath(given).parts
        if given.startswith("/") or "\\" in given or ".." in parts or parts and ":" in parts[0]:
            return "leads out of the folder"
    if not parts or fault_in(name):
        return f"has no name that a file can have: {fault_in(name) or 'it is empty'}"
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in parts):
        return f"has a name of more than {LONGEST_NAME} bytes; rename it in the archive"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link"
    if entry.flag_bits & ENCRYPTED:
        return "is encrypted; unpack the archive by hand, with its password"
    if entry.compress_type not in METHODS:
        return f"is packed by method {entry.compress_type}, which is not read here; unpack the archive by hand (7z x)"
    if entry.file_size > MOST_RATIO * max(entry.compress_size, 1) and entry.file_size > SMALL:
        return f"grows {MOST_RATIO}-fold"
    return None


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
