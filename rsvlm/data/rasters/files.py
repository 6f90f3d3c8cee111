"""Raster files opened by GDAL: never over a network, nothing outside the folder that the file lies in, no code of a VRT."""

import hashlib
import os
import re
import threading
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio._path import _parse_path
from rasterio.errors import NotGeoreferencedWarning, RasterioError

DRIVERS = ("GTiff", "JP2OpenJPEG", "VRT", "JPEG", "PNG", "WEBP", "BMP", "GIF")
WHOLE = 64 * 2**20  # bytes; smaller files are fingerprinted whole, of larger ones parts and the time of their change
CACHE = 128  # megabytes of decoded blocks that GDAL keeps, for all scenes of a process together
LONGEST_VRT = 64 * 2**20  # bytes
# No network, no Python code of a VRT, no grey in the place of what a truncated JPEG lacks.
GDAL_OPTIONS = {
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "/none",
    "GDAL_CACHEMAX": CACHE,
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_VRT_ENABLE_RAWRASTERBAND": "NO",
}
_HEADS = (
    b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51", b"\xff\xd8\xff", b"\x89PNG", b"RIFF",
    b"BM", b"GIF8",
)  # fmt: skip
_VRT_CLASSES = {
    "vrtwarpeddataset", "vrtpansharpeneddataset", "vrtsourcedrasterband", "vrtwarpedrasterband", "vrtderivedrasterband",
    "vrtpansharpenedrasterband",
}  # fmt: skip
_VRT_PLACES = ("sourcefilename", "sourcedataset", "dempath", "rpc_dem")  # elements and attributes that name files
_VRT_ITEMS = ("x_dataset", "y_dataset", "overview_file", "rpc_dem")  # metadata and options that do
_OPENING = threading.Lock()  # what warnings are shown is a matter of the process


class SceneError(ValueError):
    """A scene that cannot be used; the message names the file, what is wrong and what to do."""


def open_raster(path: Path, data: bytes | None = None, **options) -> rasterio.DatasetReader:
    """A file of one of DRIVERS, open, after ``check_files``.

    Not by ``rasterio.open``, which takes one driver, and takes some names for addresses.
    """
    memory = rasterio.MemoryFile(data) if data is not None else None
    place = memory.name if memory else str(absolute(path))
    vrt = data is None and _is_vrt(path)
    drivers = ["VRT"] if vrt else [driver for driver in DRIVERS if driver != "VRT"]
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            file = rasterio.DatasetReader(_parse_path(Path(place)), driver=drivers, **options)
    except RasterioError as error:
        raise SceneError(
            f"{path}: cannot be read as a scene ({error}); read are {', '.join(DRIVERS)}; where another program shows it, "
            "save it as GeoTIFF: gdal_translate -of COG IN OUT.tif"
        ) from error
    if memory:
        file._env.enter_context(memory)  # the bytes stay as long as the file is open
    pages = file.subdatasets
    if pages or not file.count:
        file.close()
        raise SceneError(
            f"{path}: {len(pages)} rasters in one file; take one out: gdal_translate -of COG "
            f"{pages[0] if pages else 'IN'} OUT.tif"
        )
    top = absolute(path).parent
    outside = [name for name in file.files if data is None and not Path(os.path.normpath(name)).is_relative_to(top)]
    if outside:
        file.close()
        raise SceneError(f"{path}: names a file outside its folder, {outside[0]}, which is not read; copy it there")
    return file


def absolute(path: Path) -> Path:
    """The path from the root, without ``..``; links are not followed."""
    return Path(os.path.normpath(path.absolute()))


def _is_vrt(path: Path) -> bool:
    with path.open("rb") as file:
        return b"<vrtdataset" in file.read(4096).lower()


def check_files(path: Path, data: bytes | None = None) -> list[Path]:
    """The files that a VRT names, all the way down; [] for others.

    Raises:
        FileNotFoundError: there is no such scene.
        SceneError: no file, empty, or it names one that is missing, no raster, outside the scene's folder or on a
            network.
    """
    if data is not None:
        return []
    try:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such scene")
        if not path.is_file():
            raise SceneError(f"{path}: a folder, a pipe or a device, not a raster; give one file")
        if path.stat().st_size == 0:
            raise SceneError(f"{path}: the file is empty (zero bytes); fetch it again")
        _check_beside(path)
        return _files_of_vrt(path, absolute(path).parent, path, set()) if _is_vrt(path) else []
    except PermissionError as error:
        raise SceneError(f"{path}: cannot be read: {error.strerror}") from error


def _check_beside(path: Path) -> None:
    """Overviews and masks beside a file are rasters as it is: GDAL would take them for anything that it knows."""
    for end in (".ovr", ".msk", ".msk.ovr"):
        for name in (path.name + end, path.name + end.upper()):
            beside = path.with_name(name)
            if beside.is_file() and not _has_head(beside):
                raise SceneError(f"{path}: {name} beside it is no raster; take it away")


def _has_head(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16).startswith(_HEADS)


def _files_of_vrt(vrt: Path, top: Path, scene: Path, seen: set[Path]) -> list[Path]:
    """The files that a VRT names, and those that VRTs among them name; ``top``: the folder that none may leave."""
    seen.add(absolute(vrt))
    text = vrt.read_bytes() if vrt.stat().st_size <= LONGEST_VRT else b"<!doctype"
    if b"<!doctype" in text.lower():
        raise SceneError(f"{scene}: {vrt.name} is no VRT as GDAL writes it; make it anew with gdalbuildvrt")
    try:
        root = ElementTree.fromstring(text.lstrip())
    except ElementTree.ParseError as error:
        raise SceneError(f"{scene}: {vrt.name} is no whole VRT ({error}); make it anew with gdalbuildvrt") from error
    found = []
    for element in root.iter():
        kind = _bare(element.tag)
        own = {_bare(key): value for key, value in element.attrib.items()}
        allowed = own.get("subclass", "vrtwarpeddataset").lower() in _VRT_CLASSES
        if not allowed or kind in ("group", "pixelfunctioncode", "processingsteps"):
            raise SceneError(
                f"{scene}: {vrt.name} holds {element.tag} {own.get('subclass', '')}, which may run code or read any file, "
                "and is not read; make a raster of it: gdal_translate -of COG IN OUT.tif"
            )
        places = [value for key, value in own.items() if key in _VRT_PLACES]
        named = own.get("key", own.get("name", "")).lower()
        if kind in _VRT_PLACES or (kind in ("mdi", "option") and named in _VRT_ITEMS):
            places.append(element.text or "")
        for place in places:
            file = _file_of_vrt(place.strip(), own.get("relativetovrt") == "1", vrt, top, scene)
            found.append(file)
            if file not in seen:
                seen.add(file)
                if _is_vrt(file):
                    found += _files_of_vrt(file, top, scene, seen)
                elif not _has_head(file):
                    raise SceneError(f"{scene}: {vrt.name} names {place!r}, which is no raster of {', '.join(DRIVERS)}")
                _check_beside(file)
    return found


def _bare(name: str) -> str:
    """The name of an element or attribute as GDAL compares it: it knows no namespaces and no case."""
    return name.rpartition("}")[2].lower()


def _file_of_vrt(place: str, relative: bool, vrt: Path, top: Path, scene: Path) -> Path:
    if not place or place.startswith(("<", "{", "/vsi")) or re.match(r"[A-Za-z][A-Za-z0-9_+.-]+:", place):
        raise SceneError(
            f"{scene}: {vrt.name} names {place[:80]!r}, which is no plain file; nothing is fetched from a network or unpacked: "
            "bring the file, and make the VRT anew with gdalbuildvrt"
        )
    file = Path(os.path.normpath(absolute(vrt).parent / place))
    if not file.is_relative_to(top) or not (relative or os.path.isabs(place)):
        raise SceneError(
            f"{scene}: {vrt.name} names {place!r}, which leads out of the folder of the scene; put the VRT and what it names "
            "into one folder, and make it anew with gdalbuildvrt there"
        )
    if not file.is_file():
        raise SceneError(f"{scene}: {vrt.name} names {place!r}, which is missing; bring it, or make the VRT without it")
    return file


def digest_of_file(path: Path) -> bytes:
    """A digest of a file: of all of it, or of a large one its size, time of change, start, end and parts between."""
    state, digest = path.stat(), hashlib.sha256()
    with path.open("rb") as file:
        if state.st_size <= WHOLE:
            for block in iter(lambda: file.read(2**20), b""):
                digest.update(block)
        else:
            digest.update(f"{state.st_size} {state.st_mtime_ns}".encode())
            for place in np.linspace(0, max(0, state.st_size - 2**16), 64).astype(np.int64).tolist():
                file.seek(place)
                digest.update(file.read(2**16))
    return digest.digest()
