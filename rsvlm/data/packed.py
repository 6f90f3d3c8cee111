"""The bytes of an image, whether it is a file of its own or lies inside a tar shard or a Parquet file.

An image inside a file has the path ``FILE::MEMBER``: ``shards/train-0001.tar::000123.jpg`` is a member of a shard,
``data/train.parquet::image/017`` the row 17, counted from 0, of the column ``image``. Nothing is unpacked. Of a shard the
places of its members are found once a process, and each is read by itself. Of a Parquet file a row group is the least
that can be read; the last two are kept, so images are read fast in the order of their rows and slowly in any other.

What a path tells of how a raster is read (``rsvlm.data.recipes``) changes nothing about its bytes.

Nothing heavy is imported here: settings are checked before a stage starts.
"""

import hashlib
import os
import re
import tarfile
import threading
from bisect import bisect_right
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rsvlm.data.names import check_name
from rsvlm.data.recipes import BETWEEN, split_reading

if TYPE_CHECKING:
    import pyarrow

# Format -> what its files are called. Some of them are only found to be refused with a way out.
FILES = {
    "webdataset": ("*.tar", "*.tar.*", "*.tgz"),
    "hf_dataset": ("*.parquet", "metadata.csv", "metadata.jsonl", "*.arrow"),
}
LARGEST = 2**30  # bytes of a member or of a row group's images; both are read into memory
PICKLES = (".pkl", ".pickle", ".pyd", ".pt", ".pth")  # opening one runs whatever code is in it
TEXTS = (".txt", ".json")
SHARDS = 4096  # whose members' places are kept
_PACKED = re.compile(rf"(.+?\.(?:tar|parquet)){BETWEEN}(.+)", re.DOTALL)
_BLOCK = 512  # bytes; a tar file is made of such blocks and ends with blocks of zeros
_ONE_AT_A_TIME = threading.Lock()  # images are decoded by several threads: one scans, the others wait for what it finds


class ImageError(ValueError):
    """An image file that cannot be used; the message names the file and what is wrong."""


def split_path(path: Path) -> tuple[Path, str] | None:
    """The file and the member of an image inside a file; None for an image that is a file of its own."""
    match = _PACKED.fullmatch(str(split_reading(path)[0]))
    return (Path(match[1]), match[2]) if match else None


def stat_of(path: Path) -> os.stat_result:
    """The state of the image's file, or of the file that it lies in. Raises as ``Path.stat``."""
    inside = split_path(path)
    return (inside[0] if inside else split_reading(path)[0]).stat()


def digest_of(path: Path) -> str:
    """What stands for a picture's content: SHA-256, as hex, of its bytes, or of that and of how they are read.

    Raises: as ``open_stream``.
    """
    with open_stream(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    recipe = split_reading(path)[1]
    return digest if recipe is None else hashlib.sha256(f"{digest} {recipe}".encode()).hexdigest()


def open_stream(path: Path) -> BinaryIO:
    """An image's bytes, to be read and closed by the caller.

    Raises:
        FileNotFoundError: there is no such file, or none of that name in it.
        ImageError: it cannot be read; names it.
    """
    inside = split_path(path)
    try:
        return BytesIO(_read_member(*inside, path)) if inside else split_reading(path)[0].open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error


def find_files(place: Path, format: str) -> tuple[Path, list[Path]]:
    """The folder that names start from, and the files of a format at a place, sorted.

    Args:
        place: a file, a folder that is searched with the folders in it, or a pattern (``shards/train-*.tar``).
        format: one of FILES.
    """
    base, pattern = (place, "**/*") if place.is_dir() else (place.parent, "")
    if not pattern and not place.is_file():
        base = next(parent for parent in place.parents if parent.is_dir())
        pattern = place.relative_to(base).as_posix()
    found = [
        path
        for path in (base.glob(pattern) if pattern else [place])
        if any(path.match(ending) for ending in FILES[format])
        and not any(part.startswith(".") for part in path.relative_to(base).parts)
        and path.is_file()
    ]
    return base, sorted(found)


def scan_shard(path: Path) -> dict[str, tuple[int, int]]:
    """Member -> its first byte and its number of bytes, for the files in a tar shard, in its order.

    Raises:
        ValueError: compressed, cut off or damaged; a member that is a link, a device, sparse, a pickle or leads out of
            the shard; a name twice. Names shard and member.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if path.suffix != ".tar" or head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")):
        raise ValueError(
            f"{path}: a compressed shard, of which no image can be read by itself; unpack it to a plain .tar, for "
            "example: gunzip SHARD.tar.gz (unzstd, xz -d); images are compressed already, so it hardly grows"
        )
    places, end, last = {}, 0, "its start"
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + (0 if member.issparse() else -(-member.size // _BLOCK) * _BLOCK)
                last = repr(member.name)
                if member.isdir():
                    continue
                name = _check_member(member, path)
                if name in places:
                    raise ValueError(f"{path}: two members are named {name!r}; take one out")
                places[name] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not a whole tar file ({error}) behind {last}; fetch it again") from error
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(LARGEST >> 10)
    if len(rest) < _BLOCK or rest.strip(b"\0"):
        raise ValueError(
            f"{path}: not a whole tar file: behind {last} comes neither a member nor the end; it was cut off, or several "
            "were joined; fetch it again"
        )
    return places


def _check_member(member: tarfile.TarInfo, path: Path) -> str:
    """The name of a member that may be read, without "./" at its start."""
    where = f"{path}: {member.name!r}"
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "sparse" if member.issparse() else "a device or a pipe"
        raise ValueError(f"{where} is {kind}, and only plain files are read from a shard; pack it anew without it")
    name = Path(check_name(member.name, where)).as_posix()
    if not name.isprintable():
        raise ValueError(f"{where}: the name holds characters that are no text in UTF-8; rename it")
    if name.lower().endswith(PICKLES):
        raise ValueError(
            f"{where} is a pickle, which could run code, and is not read; pack the shard anew without it, captions as "
            ".txt or .json"
        )
    if member.size > LARGEST:
        raise ValueError(f"{where}: {member.size:,} bytes, more than the {LARGEST:,} that a member may have")
    return name


def open_parquet(path: Path, remedy: str = "fetch it again") -> "pyarrow.parquet.ParquetFile":
    """A Parquet file, its head read.

    Args:
        remedy: the end of an error's sentence: what to do about a damaged file.

    Raises:
        ValueError: not a whole Parquet file; names it.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: not a whole Parquet file ({error}); {remedy}") from error


def read_columns(
    file: "pyarrow.parquet.ParquetFile",
    path: Path,
    group: int,
    columns: list[str] | None,
    remedy: str = "fetch the file again",
) -> "pyarrow.Table":
    """Some columns of a row group; None: all. ``remedy`` as for ``open_parquet``.

    Raises:
        ImageError: it is damaged; names the file and the group.
    """
    from pyarrow import ArrowException

    try:
        read = file.read_row_group(group, columns=columns)
        read.validate(full=True)  # that texts are texts, too
        return read
    except (ArrowException, OSError) as error:
        raise ImageError(f"{path}: row group {group} cannot be read ({error}); {remedy}") from error


def read_group(path: Path, column: str, group: int) -> "pyarrow.ChunkedArray":
    """The images' bytes of one row group, null where a row has none.

    Raises:
        ImageError: the group is damaged, or too large to be read as a whole; says how to write it anew.
    """
    import pyarrow
    from pyarrow import compute

    file = open_parquet(path)
    with file:
        about = file.metadata.row_group(group)
        leaves = [about.column(place) for place in range(about.num_columns)]
        size = sum(leaf.total_uncompressed_size for leaf in leaves if leaf.path_in_schema.split(".")[0] == column)
        if size > LARGEST:
            raise ImageError(
                f"{path}: a row group with {size:,} bytes of images, which are read as one; write it anew in smaller "
                'groups: pyarrow.parquet.write_table(pyarrow.parquet.read_table("IN"), "OUT", row_group_size=100)'
            )
        cells = read_columns(file, path, group, [column]).column(0)
    return compute.struct_field(cells, "bytes") if pyarrow.types.is_struct(cells.type) else cells


def _read_member(file: Path, member: str, path: Path) -> bytes:
    state = file.stat()
    key = (str(file.absolute()), state.st_size, state.st_mtime_ns)
    if file.suffix == ".tar":
        with _ONE_AT_A_TIME:
            place = _places_in(*key).get(member)
        if place is None:
            raise FileNotFoundError(f"{path}: no such member in this shard")
        with file.open("rb") as stream:
            stream.seek(place[0])
            return stream.read(place[1])
    column, _, number = member.rpartition("/")
    with _ONE_AT_A_TIME:
        starts = _group_starts(*key)
        if not column or not number.isdecimal() or int(number) >= starts[-1]:
            raise FileNotFoundError(f"{path}: needs COLUMN/ROW behind {BETWEEN}, a row below {starts[-1]}")
        group = bisect_right(starts, int(number)) - 1
        cells = _kept_group(*key, column, group)
    data = cells[int(number) - starts[group]].as_py()
    if data is None:
        raise FileNotFoundError(f"{path}: this row has no image")
    return data


@lru_cache(maxsize=SHARDS)
def _places_in(file: str, size: int, changed: int) -> dict[str, tuple[int, int]]:
    """As ``scan_shard``, of all but texts; ``size`` and ``changed`` tell a shard that was written anew."""
    try:
        places = scan_shard(Path(file))
    except ValueError as error:
        raise ImageError(str(error)) from error
    return {name: place for name, place in places.items() if not name.endswith(TEXTS)}


@lru_cache(maxsize=SHARDS)
def _group_starts(file: str, size: int, changed: int) -> list[int]:
    """The first row of each row group, and the number of rows."""
    try:
        with open_parquet(Path(file)) as opened:
            counts = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
    except ValueError as error:
        raise ImageError(str(error)) from error
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return starts


@lru_cache(maxsize=2)  # at the border of two, threads ask for both in turn
def _kept_group(file: str, size: int, changed: int, column: str, group: int) -> "pyarrow.ChunkedArray":
    return read_group(Path(file), column, group)
