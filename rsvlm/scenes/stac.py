"""STAC on disk: the scenes that an Item, an ItemCollection, a Catalog or a Collection tells of.

pystac reads the documents (any version of STAC that it knows); the files they name are found here, because a document
is somebody else's data: a link may not lead out of the folder of the document that was opened, nor, unless that is asked
for, to a server. Nothing here reads over a network.
"""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pystac
import shapely

from rsvlm.data.moments import moment
from rsvlm.data.rasters.files import SceneError
from rsvlm.files import read_json
from rsvlm.scenes.footprints import split_at_date_line

KINDS = "an Item, an ItemCollection, a Catalog or a Collection"
GEOREFERENCED = ("image/tiff", "image/jp2", "image/vnd.stac.geotiff")  # media types without their parameters
SUFFIXES = (".tif", ".tiff", ".jp2", ".j2k", ".vrt")  # of assets without a media type
NOT_PICTURES = {"thumbnail", "overview", "metadata"}  # roles
TAKEN = {"datetime", "eo:cloud_cover"}  # properties with a column of another name
TIMES = ("start_datetime", "end_datetime")
_REMOTE = ("http", "https", "s3", "gs", "az", "ftp")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


@dataclass(frozen=True)
class Found:
    """A scene that a document tells of.

    Attributes:
        item: its id.
        where: document and item, for messages.
        path: of its file; an address where it lies on a server.
        trouble: why it cannot be used, else empty; then nothing below is known.
        remote: whether it lies on a server.
        date: when it was taken, or the start of that time.
        geometry: in degrees; None where the item tells none.
        properties: the item's plain ones (text, number, yes or no) and its collection.
        bands: what each band of the file is called, such as "B04 red"; empty where nobody says.
        document: whether a STAC document tells of it; else it is a file alone.
    """

    item: str
    where: str
    path: str = ""
    trouble: str = ""
    remote: bool = False
    date: pd.Timestamp | None = None
    cloud_cover: float = math.nan
    geometry: shapely.Geometry | None = None
    properties: dict[str, object] = field(default_factory=dict)
    bands: tuple[str, ...] = ()
    document: bool = True


def read_stac(path: Path, *, asset: str | None = None, online: bool = False) -> Iterator[Found]:
    """The scenes of a document and of those that it links to, in their order.

    Args:
        path: an Item, an ItemCollection, a Catalog or a Collection; catalogs are followed to the end.
        asset: key of the asset with the picture. None: the one that is no thumbnail, overview or metadata and has the
            role ``visual``; where there is none, the role ``data``; else the only GeoTIFF, COG or JPEG 2000.
        online: whether scenes on a server count; they are told of, not fetched.

    Raises:
        FileNotFoundError: there is no such document.
        SceneError: no STAC, an item that pystac cannot read, or several assets that may be the one; names document, item
            and what there is.
    """
    top, todo, seen = path.parent, [path], set()
    while todo:
        document = todo.pop()
        place = os.path.abspath(document)
        if place in seen:
            continue
        seen.add(place)
        content = read_json(document)
        kind = content.get("type") if isinstance(content, dict) else None
        if kind in ("Catalog", "Collection"):
            links: list[Path] = []
            for href in _links(content, document):
                linked, remote, trouble = _locate(href, document, top)
                if remote:
                    trouble = "it lies on a server, and only documents on disk are read"
                if not trouble and not Path(linked).is_file():
                    trouble = "there is no such file"
                if trouble:
                    yield Found(href, f"{document}: link {href!r}", trouble=trouble)
                else:
                    links.append(Path(linked))
            todo += reversed(links)
        elif kind == "Feature":
            yield _read_item(content, document, f"{document}", top, asset, online)
        elif kind == "FeatureCollection":
            if not isinstance(content.get("features"), list):
                raise SceneError(f"{document}: no ItemCollection: 'features' is no list")
            for number, one in enumerate(content["features"], start=1):
                yield _read_item(one, document, f"{document}: item {number}", top, asset, online)
        else:
            raise SceneError(f"{document}: no STAC document ('type' is {kind!r}); expected {KINDS}")


def _links(content: dict, document: Path) -> list[str]:
    """Addresses of a catalog's children and items, in their order."""
    kind = pystac.Collection if content["type"] == "Collection" else pystac.Catalog
    try:
        catalog = kind.from_dict(content, href=str(document), preserve_dict=False)
        wanted = (pystac.RelType.CHILD, pystac.RelType.ITEM)
        return [link.get_target_str() for link in catalog.links if link.rel in wanted]
    except (pystac.STACError, pystac.STACTypeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise SceneError(
            f"{document}: no STAC {content['type']} that can be read ({type(error).__name__}: {error}); validate it, for "
            "example with `stac-validator`"
        ) from error


def _read_item(content: object, document: Path, where: str, top: Path, key: str | None, online: bool) -> Found:
    name = content.get("id") if isinstance(content, dict) else None
    where = f"{where}, id {name!r}" if name else where
    try:
        item = pystac.Item.from_dict(content, preserve_dict=False)
        if not isinstance(item.id, str) or not item.id.strip():
            raise ValueError("it has no id")
        geometry = _geometry_of(item.geometry)
        date = item.datetime or item.properties.get("start_datetime")
        date = None if date is None else moment(date)
        cloud_cover = float(item.properties.get("eo:cloud_cover", math.nan))
        properties = _plain(item)
        for name, asset in item.assets.items():
            if not all(isinstance(told, str) for told in (asset.media_type or "", *(asset.roles or ()))):
                raise ValueError(f"asset {name!r}: its type or its roles are no text")
        bands = {name: _bands_of(asset) for name, asset in item.assets.items()}
    except (
        pystac.STACError, pystac.STACTypeError, shapely.errors.ShapelyError,
        LookupError, TypeError, ValueError, AttributeError,
    ) as error:  # fmt: skip
        raise SceneError(
            f"{where}: no STAC item that can be read ({type(error).__name__}: {error}); validate it, for example with "
            "`stac-validator`"
        ) from error
    chosen, trouble = _choose_asset(item, key, where)
    if chosen is None:
        return Found(item.id, where, trouble=trouble)
    path, remote, trouble = _locate(item.assets[chosen].href, document, top)
    if remote and not online:
        trouble = f"{path} lies on a server, which is not asked; fetch it, or give online=True to list it"
    elif not trouble and not remote and not os.path.isfile(path):  # also where a name is too long
        trouble = f"there is no file {path}; fetch it"
    if trouble:
        return Found(item.id, where, trouble=f"asset {chosen!r}: {trouble}")
    known = {"date": date, "cloud_cover": cloud_cover, "geometry": geometry, "properties": properties}
    return Found(item.id, where, path, remote=remote, bands=bands[chosen], **known)


def _choose_asset(item: pystac.Item, key: str | None, where: str) -> tuple[str | None, str]:
    """(key of the asset with the picture, or None and why there is none)."""
    there = f"it has {', '.join(map(repr, item.assets))}" if item.assets else "it has no assets"
    if key is not None:
        return (key, "") if key in item.assets else (None, f"no asset {key!r}; {there}")
    pictures, georeferenced = {}, []
    for name, asset in item.assets.items():
        kind = (asset.media_type or "").partition(";")[0].strip().lower()
        suffix = os.path.splitext(urlsplit(asset.href).path)[1].lower()
        roles = set(asset.roles or ())
        if roles & NOT_PICTURES or not (kind.startswith("image/") if kind else suffix in SUFFIXES):
            continue
        pictures[name] = roles
        if kind in GEOREFERENCED or not kind:
            georeferenced.append(name)
    ways = [[name for name, roles in pictures.items() if role in roles] for role in ("visual", "data")]
    for names in (*ways, georeferenced):
        if len(names) > 1:
            raise SceneError(
                f"{where}: its picture may be any of the assets {', '.join(map(repr, names))}; give one: "
                f"asset={names[0]!r} ({there})"
            )
        if names:
            return names[0], ""
    return None, f"no asset is a GeoTIFF, COG or JPEG 2000, or has the role 'visual' or 'data'; {there}"


def _locate(href: str, document: Path, top: Path) -> tuple[str, bool, str]:
    """(path or address, whether it lies on a server, why it is refused) of a document's link."""
    if not isinstance(href, str) or not href.strip() or "\0" in href:
        return str(href), False, f"{href!r} is no link"
    scheme = _SCHEME.match(href)
    if scheme and scheme[1].lower() == "file":
        parts = urlsplit(href)
        if parts.netloc not in ("", "localhost"):
            return href, False, f"{href!r} names a file of another machine"
        href = unquote(parts.path)
    elif scheme and scheme[1].lower() in _REMOTE:
        return href, True, ""
    elif scheme:
        return href, False, f"{href!r} starts with {scheme[0]!r}, which is not read; expected a path"
    found = os.path.normpath(document.parent / href.replace("\\", "/"))
    # Links in the file system count as what they are called: whoever set them wanted them.
    if not Path(os.path.abspath(found)).is_relative_to(os.path.abspath(top)):
        return (
            found,
            False,
            f"{href!r} leads out of {top}; only files inside the folder of the opened document are read",
        )
    return found, False, ""


def _geometry_of(told: object) -> shapely.Geometry | None:
    if told is None:
        return None
    shape = shapely.force_2d(shapely.geometry.shape(told))
    if shape.is_empty or not all(map(math.isfinite, shape.bounds)):
        raise ValueError("its geometry is empty or not finite")
    west, _, east, _ = shape.bounds
    whole = west == -180 and east == 180 and shape.equals(shape.envelope)
    if (
        shape.geom_type in ("Polygon", "MultiPolygon")
        and not whole
        and (east - west > 180 or west < -180 or east > 180)
    ):
        return split_at_date_line(shape)
    return shape if shape.is_valid else shapely.make_valid(shape)


def _plain(item: pystac.Item) -> dict[str, object]:
    told = {name: value for name, value in item.properties.items() if name not in TAKEN}
    if item.collection_id:
        told.setdefault("collection", item.collection_id)
    plain = {name: value for name, value in told.items() if isinstance(value, str | int | float)}
    return plain | {name: moment(plain[name]) for name in TIMES if name in plain}


def _bands_of(asset: pystac.Asset) -> tuple[str, ...]:
    """What each band is called: its name and its common name, by STAC 1.1 or the extensions eo and raster."""
    for listed in ("bands", "eo:bands", "raster:bands"):
        told = asset.extra_fields.get(listed)
        if not isinstance(told, list) or not all(isinstance(band, dict) for band in told):
            continue
        keys = ("name", "eo:common_name", "common_name")
        names = [" ".join(dict.fromkeys(str(band[key]) for key in keys if band.get(key))) for band in told]
        if any(names):
            return tuple(name.replace(";", ",") for name in names)
    return ()
