"""Self-contained HTML pages from Jinja2 templates, and the small pictures that they show.

A page holds its style, its script and its pictures, and asks no network and no kernel. What comes from the data
(captions, file names, labels) reaches it only through Jinja2's autoescape or its ``tojson`` filter. A content security
policy in the page allows the one script by its hash and forbids every connection: even a text that slipped through
could neither run nor call home. Marks of reading direction in a text end with it. Pictures are JPEG copies as data URIs.
"""

import base64
import hashlib
import io
import math
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
from IPython.display import HTML
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from rsvlm.content_cache import ContentCache
from rsvlm.data.images import READING, ImageError, check_file, open_image
from rsvlm.data.packed import stat_of
from rsvlm.files import cache_folder, write_text
from rsvlm.safe_text import isolate
from rsvlm.scoring.runs import METHODS, RUNS, named
from rsvlm.viewing.plots import shrink

QUALITIES = (86, 80, 74, 68, 62, 56, 48, 40, 32, 24)  # of JPEG, tried from the best down until the bytes fit
BINS = 24  # of a histogram
ENLARGED = 384  # pixels up to which small pictures are enlarged


def format_score(value: float | None, digits: int = 2) -> str:
    """``value`` with a fixed number of digits; a dash when it is missing or no number."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def format_percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent without the sign; a dash when it is missing."""
    return format_score(None if value is None else 100 * value, digits)


def page_environment() -> Environment:
    """The Jinja2 environment of the package's templates: autoescape on, directions isolated, an unknown name an error."""
    made = Environment(
        loader=PackageLoader("rsvlm.viewing", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: isolate(value) if type(value) is str else value,  # Markup is the package's own
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(score=format_score, percent=format_percent)
    made.filters["slug"] = lambda name: "what-" + re.sub(r"\W+", "-", name.lower()).strip("-")
    made.filters["groupby_neighbours"] = lambda rows, key: [list(own) for _, own in groupby(rows, itemgetter(key))]
    made.globals.update(RUNS=RUNS, METHODS=METHODS, named=named)
    return made


def read_template(*names: str) -> str:
    """The text of scripts or style sheets of the package's templates, one behind the other."""
    loader = page_environment().loader
    return "\n".join(loader.get_source(None, name)[0].strip() for name in names)


def render_page(template: str, scripts: Sequence[str], styles: Sequence[str] = (), **values: object) -> str:
    """The HTML text of one page.

    Args:
        template: file name of the template.
        scripts: file names of the page's script in parts, kept beside the template.
        styles: style sheets beside ``page.css``.
        values: what the template shows.
    """
    code, style = read_template(*scripts), read_template("page.css", "scores.css", *styles)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
    # Markup: these two are files of this package, not data.
    own = {"style": Markup(style), "script": Markup(code), "script_hash": f"sha256-{digest}"}
    return page_environment().get_template(template).render(**own, **values)


def show_cards(rows: Iterable[Mapping[str, object]], width: int = 170) -> HTML:
    """Rows of pictures with words below, for a notebook's cell; every text is escaped.

    Args:
        rows: ``{"head", "words", "cards": [{"picture": data URI, "bold", "title", and perhaps "text", "note", "right"}]}``.
        width: of a card, pixels.
    """
    return HTML(page_environment().get_template("cards.html").render(rows=rows, width=width))


def write_page(path: Path, html: str) -> int:
    """The page's size in bytes, after it was written to ``path``, whole."""
    write_text(path, html)
    return path.stat().st_size


def read_reported(value: Mapping | None) -> dict[str, float | None]:
    """A reported score as ``{"value", "low", "high", "n"}``, missing parts None."""
    return {key: (value or {}).get(key) for key in ("value", "low", "high", "n")}


@dataclass(frozen=True)
class Sample:
    """What fits on a page: positions to show; the first ``drawn`` are a plain random sample of all ``total``."""

    positions: list[int]
    drawn: int
    total: int


def choose_sample(total: int, ranked: Sequence[int], most: int, seed: int) -> Sample:
    """At most ``most`` of ``total`` things: all, or the best, the worst and the middle ones and a random sample.

    Best, worst and middle ones take an eighth of the page each. The random draw goes on until the page is full, so that
    it stays a plain sample, whatever the extremes.

    Args:
        ranked: positions from best to worst; things without a score are left out of it.
    """
    if most < 1:
        raise ValueError(f"a page of {most} entries: give at least 1")
    order = np.random.default_rng(seed).permutation(total).tolist()
    if total <= most:
        return Sample(order, total, total)
    share = most // 8
    middle = max(0, len(ranked) // 2 - share // 2)
    extremes = [*ranked[:share], *ranked[max(0, len(ranked) - share) :], *ranked[middle : middle + share]]
    chosen, drawn = set(extremes), []
    for position in order:
        if len(chosen) >= most and position not in chosen:
            break
        chosen.add(position)
        drawn.append(position)
    rest = [position for position in dict.fromkeys(extremes) if position not in set(drawn)]
    return Sample(drawn + rest, len(drawn), total)


def histogram_paths(
    series: Mapping[str, np.ndarray], *, width: float, height: float
) -> tuple[dict[str, str], float, int]:
    """SVG paths of step histograms of several series on one scale.

    Returns:
        A path for each series in a box of ``width`` x ``height`` (y downwards, the base line closed), the upper end of
        the x axis (the lower end is 0), and the largest count.
    """
    top = float(max(1, *(math.ceil(values.max()) for values in series.values())))
    counts = {
        name: np.bincount(np.clip(values / top * BINS, 0, BINS - 1).astype(int), minlength=BINS)
        for name, values in series.items()
    }
    highest = max(int(own.max()) for own in counts.values())
    paths = {}
    for name, own in counts.items():
        steps = [f"M0 {height:g}"]
        for position, count in enumerate(own.tolist()):
            y = height * (1 - count / highest)
            steps.append(f"L{width * position / BINS:.1f} {y:.1f}L{width * (position + 1) / BINS:.1f} {y:.1f}")
        paths[name] = "".join(steps) + f"L{width:g} {height:g}Z"
    return paths, top, highest


def encode_jpeg(image: Image.Image, most_bytes: int) -> bytes:
    """``image`` as JPEG, in the best quality that stays within ``most_bytes``, or the lowest one tried."""
    data = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        data = buffer.getvalue()
        if len(data) <= most_bytes:
            break
    return data


def make_thumbnail(image: str | Image.Image, pixels: int = 192, most_bytes: int = 12_000) -> str:
    """A small copy of an image, or of the one at a path, as a data URI.

    Args:
        pixels: the longer side; a small image is enlarged, by Lanczos, up to 384 pixels.
        most_bytes: of the JPEG; the quality is lowered until it fits. A data URI is a third larger.

    Raises:
        FileNotFoundError, ValueError: the image cannot be read (names the file).
        ValueError: ``pixels`` is below 16.
    """
    return _as_uri(_encode_small(image, _check_pixels(pixels), most_bytes))


def bytes_for_each(page_megabytes: float, images: float, text_bytes: int) -> int:
    """How many JPEG bytes each of ``images`` thumbnails may take so that a page stays within ``page_megabytes``.

    Args:
        page_megabytes: of 1,000,000 bytes, for the whole page.
        images: how many, smaller ones counted as parts.
        text_bytes: what the page's text and code take beside the thumbnails.
    """
    left = page_megabytes * 1e6 * 0.97 - text_bytes
    return max(1_500, int(left / max(1, images) * 3 / 4))


class ThumbnailCache:
    """Thumbnails of one size, made once, so that a page of thousands costs what is on the screen.

    A picture that changes on disk gets a new one. Several notebooks may use a folder at a time.

    Args:
        pixels: the longer side, as ``make_thumbnail`` takes it.
        most_bytes: of a JPEG; its quality is lowered until it fits.
        folder: of the cache; by default ``cache_folder()``.
    """

    def __init__(self, pixels: int = 192, most_bytes: int = 12_000, folder: Path | None = None) -> None:
        self.pixels, self.most_bytes = _check_pixels(pixels), most_bytes
        self.kind = f"thumbnail-{READING}-{ENLARGED}-{pixels}-{most_bytes}"
        try:
            self._kept = ContentCache(folder or cache_folder())
        except (OSError, sqlite3.OperationalError):  # a full or closed disk keeps nobody from looking
            self._kept = ContentCache()

    def find(self, paths: Iterable[str]) -> dict[str, str]:
        """Those data URIs that are there already, by path; pictures that cannot be found have none."""
        states = {}
        for path in paths:
            try:
                states[_state_of(path)] = path
            except (FileNotFoundError, ImageError):
                continue  # ``make`` says so when the picture is asked for
        return {states[state]: _as_uri(jpeg) for state, jpeg in self._kept.read(self.kind, states)}

    def make(self, paths: Iterable[str]) -> dict[str, str]:
        """Data URIs by path, made and kept where they were not there.

        Raises:
            FileNotFoundError, ValueError: a picture cannot be read; names the file.
        """
        paths = list(dict.fromkeys(paths))
        found = self.find(paths)
        states = {path: _state_of(path) for path in paths if path not in found}
        made = {path: _encode_small(path, self.pixels, self.most_bytes) for path in states}
        with suppress(sqlite3.OperationalError):  # a full or closed disk: they are shown all the same
            self._kept.keep(self.kind, {states[path]: jpeg for path, jpeg in made.items()})
        return found | {path: _as_uri(jpeg) for path, jpeg in made.items()}


def _check_pixels(pixels: int) -> int:
    if pixels < 16:
        raise ValueError(f"thumbnail_pixels is {pixels}: give at least 16")
    return pixels


def _encode_small(image: str | Image.Image, pixels: int, most_bytes: int) -> bytes:
    """JPEG of an image whose longer side has ``pixels`` pixels, a small one enlarged up to ENLARGED.

    A browser's enlarging blurs, and JPEG keeps one colour for four pixels: of a tile of 48 pixels that is what is seen.
    """
    small = shrink(image if isinstance(image, Image.Image) else open_image(image), pixels)
    scale = min(pixels, ENLARGED) / max(small.size)
    if scale > 1:
        enlarged = small.resize([max(1, round(scale * side)) for side in small.size], Image.Resampling.LANCZOS)
        jpeg = encode_jpeg(enlarged, most_bytes)
        if len(jpeg) <= most_bytes:
            return jpeg
    return encode_jpeg(small, most_bytes)


def _as_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"


def _state_of(path: str) -> str:
    """What stands for a picture's content: reading 45,000 files to find their copies would take minutes."""
    file = Path(path).absolute()
    check_file(file)
    stat = stat_of(file)
    return f"{file} {stat.st_size} {stat.st_mtime_ns}"
