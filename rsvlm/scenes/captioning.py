"""What a whole scene shows, in a few sentences: its windows are captioned first, then one text is made of what they say.

The captioner says what each window shows, as ``rsvlm.caption`` does for a picture. The text is made of its words by
rule, without a model: windows whose captions say alike are told in one sentence, the caption that is nearest to all of
them; where they lie ("in the north-east") and how much of the scene they cover stands in front. As captions speak of the
image that they were made for, "the image" becomes "the window" there: it is never the scene. Two captions say alike where the encoder's text tower finds them at
least as similar as half the pairs of captions that one training image was given. What is said of windows unlike anything
in training is marked as a guess, stands behind the rest and is never joined with it.

Window by window and a text of all is how captions of long videos and large images are made hierarchically (for example
Islam et al. 2024, Video ReCap); here the second step is a rule, so that each sentence can be traced to its windows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import shapely
from PIL import Image
from pyproj import Geod, Transformer
from pyproj.exceptions import ProjError

from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.scene import Scene
from rsvlm.data.rasters.windows import Window
from rsvlm.models.inference import Captioner, caption_pictures
from rsvlm.models.neighbours import Memory
from rsvlm.models.prompts import as_sentence
from rsvlm.scenes.window_plans import count_windows, plan_windows

if TYPE_CHECKING:
    import geopandas

ACROSS = 8  # windows along the longer side, where no size is given
FINER = 4  # a window is read at most at so many times the pixels that the encoder takes of it
OVERVIEW = 1024  # pixels, longer side of the picture of the whole scene
JUDGED = 64  # training images whose captions tell what alike is
MOST = 0.8  # share of a sentence's windows on a side of the scene, for the sentence to be said to lie there
THROUGHOUT, LARGELY = 0.9, 0.5  # shares of the scene
CENTRE, ASIDE = 1 / 3, 0.01  # of the way from the scene's centre to its edge: up to where, and from where on
THE_IMAGE = re.compile(r"\b([Tt])(?:he|his) (?:image|picture|photo|photograph)\b")
SLANT = 45  # degrees that the way north may turn over a scene, for its places to be called north and south


@dataclass(frozen=True)
class SceneCaption:
    """What a scene shows.

    Attributes:
        text: the sentences that cover most, what is left out, and the warning.
        sentences: a GeoDataFrame, a row a sentence, the one that covers most first, guesses last: ``sentence`` (with
            place and share of the scene), ``caption`` (the model's words), ``place``, ``share`` (of what was captioned), ``windows`` (a tuple of
            row numbers of ``windows``), ``unlike_training`` (True: a guess), ``geometry`` (their union).
        windows: a GeoDataFrame, a row a window: ``left``, ``top``, ``width``, ``height`` (pixels of the scene), ``valid``
            (share of valid pixels), ``share``, ``caption``, ``log_probability``, ``distance``, ``unlike_training`` (as
            ``rsvlm.caption`` gives them), ``sentence`` (row number), ``geometry``.
        overview: the caption of the whole scene as one small picture.
        warning: how many windows are unlike anything in training; mostly nothing.
        skipped: windows without enough valid pixels.
    """

    text: str
    sentences: "geopandas.GeoDataFrame"
    windows: "geopandas.GeoDataFrame"
    overview: str
    warning: str
    skipped: int

    def places(self) -> "geopandas.GeoDataFrame":
        """All of it in one table, for ``rsvlm.scenes.places.write_places``.

        Column ``kind``: scene (the text), overview, sentence or window; ``number`` counts each kind from 0, ``sentence``
        is the one that a window belongs to, ``windows`` lists a sentence's.
        """
        import geopandas

        whole = shapely.box(*self.windows.total_bounds)
        rows = [{"kind": "scene", "number": 0, "text": self.text, "geometry": whole}]
        rows += [{"kind": "overview", "number": 0, "text": self.overview, "geometry": whole}]
        for number, row in enumerate(self.sentences.to_dict("records")):
            row["windows"] = " ".join(map(str, row["windows"]))
            rows.append({"kind": "sentence", "number": number, "text": row.pop("sentence")} | row)
        for number, row in enumerate(self.windows.to_dict("records")):
            rows.append({"kind": "window", "number": number, "text": row["caption"]} | row)
        table = pd.DataFrame(rows, dtype=object)
        return geopandas.GeoDataFrame(
            table.drop(columns="geometry"), geometry=list(table["geometry"]), crs=self.windows.crs
        )


def caption_scene(
    captioner: Captioner,
    scene: Scene,
    *,
    size: int | None = None,
    overlap: float = 0.0,
    min_valid: float = 0.5,
    most_windows: int = 400,
    most_sentences: int = 8,
    alike: float | None = None,
    batch_size: int = 32,
) -> SceneCaption:
    """A text about a scene, each sentence with its windows; the module's head says how it is made.

    Args:
        size: side of a window, pixels of the scene; best so that it shows as much ground as a training image. None: an
            eighth of the scene's longer side, or the encoder's input where that is more.
        overlap: share of a side that two neighbours have in common; ground that several windows show counts once.
        min_valid: windows with a smaller share of valid pixels are left out.
        most_windows: more are refused: each costs as much as a picture.
        most_sentences: in ``text``; all are in ``sentences``.
        alike: cosine from which on two captions say alike; None: see the module's head.

    Raises:
        SceneError: more than ``most_windows`` windows, none with enough valid pixels, or a part that cannot be read.
        ValueError: a setting is out of range.
    """
    S = captioner.encoder.image_size
    size = max(S, -(-max(scene.width, scene.height) // ACROSS)) if size is None else size
    check_windows(
        scene,
        size=size,
        overlap=overlap,
        min_valid=min_valid,
        most_windows=most_windows,
        most_sentences=most_sentences,
    )
    windows, valid, areas, skipped = _choose_windows(scene, size, overlap, min_valid)
    longest = FINER * S * max(1, int(captioner.encoding["grid"]))
    pictures = (Image.fromarray(scene.read(window, _fit(window, longest)).pixels) for window in windows)
    names = [f"{scene.name} {window.left},{window.top}" for window in windows]
    said = pd.DataFrame(caption_pictures(captioner, pictures, names, batch_size=batch_size)).drop(columns="image")
    overview = caption_pictures(captioner, [Image.fromarray(scene.overview(OVERVIEW).pixels)], [scene.name])[0]

    shares = areas * valid / (areas * valid).sum()
    table = pd.DataFrame(windows).assign(valid=valid.round(6), share=shares.round(6))
    table = pd.concat([table, said], axis=1)
    guessed = table["unlike_training"].eq(True).to_numpy()
    texts = list(dict.fromkeys(table["caption"]))
    vectors = captioner.encode_captions(texts)
    alike = _alike(captioner) if alike is None else alike
    groups = group_captions(texts, (vectors @ vectors.T).astype(np.float64), table["caption"], shares, guessed, alike)
    centres, compass = _centres(scene, windows)
    rows = [
        _sentence(text, numbers, windows, centres, compass, shares, bool(guessed[numbers[0]]))
        for text, numbers in groups
    ]
    sentence_of = {number: row for row, (_, numbers) in enumerate(groups) for number in numbers}
    table["sentence"] = [sentence_of[number] for number in range(len(table))]
    warning = ""
    if guessed.any():
        place = _find_place(np.flatnonzero(guessed), windows, centres, compass, shares)
        warning = (
            f"{guessed.sum()} of {len(windows)} windows ({place}, {_percent(shares[guessed].sum())} of the scene) are "
            "unlike anything in training: what is said of them is a guess."
        )
    ground = [scene.polygon(window) for window in windows]
    return SceneCaption(
        _tell(rows, most_sentences, warning),
        _place(rows, [shapely.union_all([ground[number] for number in row["windows"]]) for row in rows], scene),
        _place(table, ground, scene),
        ("A guess: " if overview["unlike_training"] else "") + as_sentence(overview["caption"]),
        warning,
        skipped,
    )


def check_windows(
    scene: Scene, *, size: int, overlap: float, min_valid: float, most_windows: int, most_sentences: int
) -> None:
    """Raise what ``caption_scene`` raises of its settings and of too many windows; needs no captioner."""
    if not 0 <= min_valid <= 1 or most_windows < 1 or most_sentences < 1:
        raise ValueError(
            f"min_valid: a share from 0 to 1, most_windows and most_sentences: 1 or more are needed; got {min_valid}, "
            f"{most_windows}, {most_sentences}"
        )
    planned = count_windows(scene.width, scene.height, size, overlap)
    if planned > most_windows:
        enough = int(np.ceil(size * (planned / most_windows) ** 0.5))
        raise SceneError(
            f"{scene.path}: {planned:,} windows of {size} pixels, more than most_windows ({most_windows:,}); give a "
            f"size of about {enough}, or a higher most_windows"
        )


def _choose_windows(
    scene: Scene, size: int, overlap: float, min_valid: float
) -> tuple[list[Window], np.ndarray, np.ndarray, int]:
    """(windows with enough valid pixels, their shares of them, their own areas, how many others there are)."""
    planned = [window for _, window in plan_windows(scene.width, scene.height, [size], overlap)]
    valid = np.array([_share_valid(scene, window) for window in planned])
    seen = (valid >= min_valid) & (valid > 0)
    windows = [window for window, enough in zip(planned, seen) if enough]
    if not windows:
        raise SceneError(
            f"{scene.path}: none of its {len(planned)} windows has {min_valid:.0%} of valid pixels; give a smaller "
            "min_valid, or another scene"
        )
    return windows, valid[seen], _own_areas(planned)[seen], int((~seen).sum())


def group_captions(
    texts: Sequence[str],
    similarity: np.ndarray,
    captions: Sequence[str],
    shares: np.ndarray,
    guessed: np.ndarray,
    alike: float,
) -> list[tuple[str, list[int]]]:
    """(the caption that stands for a group of windows, their numbers), the group that covers most first, guesses last.

    The caption that covers most leads the first group; each next one joins the most similar leader from ``alike`` on, or
    leads a group of its own. The caption that stands for a group has the highest mean similarity to it, by area. Equals go
    by the first window.

    Args:
        texts: the different captions.
        similarity: (texts, texts).
        captions, shares, guessed: of each window. What is guessed is a group of its own.
    """
    windows_of: dict[tuple[bool, str], list[int]] = {}
    for number, (text, guess) in enumerate(zip(captions, guessed, strict=True)):
        windows_of.setdefault((bool(guess), text), []).append(number)
    area = {key: round(float(sum(shares[number] for number in own)), 9) for key, own in windows_of.items()}
    place, similarity = {text: number for number, text in enumerate(texts)}, np.round(similarity, 6)
    groups: dict[tuple[bool, str], list[tuple[bool, str]]] = {}
    for key in sorted(windows_of, key=lambda key: (-area[key], windows_of[key][0])):
        near = {lead: similarity[place[key[1]], place[lead[1]]] for lead in groups if lead[0] == key[0]}
        lead = max(near, key=near.get, default=None)
        groups.setdefault(lead if lead is not None and near[lead] >= alike else key, []).append(key)
    found = []  # (guessed, share, numbers, caption)
    for keys in groups.values():
        weights = np.array([area[key] for key in keys])
        rows = [place[text] for _, text in keys]
        middle = int(np.argmax(np.round(similarity[np.ix_(rows, rows)] @ weights, 6)))
        numbers = sorted(number for key in keys for number in windows_of[key])
        found.append((keys[0][0], -round(float(weights.sum()), 9), numbers, keys[middle][1]))
    return [(text, numbers) for _, _, numbers, text in sorted(found)]


def say_place(
    east: np.ndarray, north: np.ndarray, weights: np.ndarray, share: float, *, compass: bool, parts: int = 1
) -> str:
    """Where in a scene some windows lie, in words.

    Args:
        east, north: (n,) of their centres, from -1 to 1; without ``compass`` to the right and up.
        weights: (n,) areas.
        share: of the scene that they cover.
        parts: that do not touch.
    """
    if share >= THROUGHOUT:
        return "throughout"

    def most(there: np.ndarray) -> bool:
        return float(weights[there].sum()) >= MOST * float(weights.sum()) - 1e-9

    if most((abs(east) <= CENTRE) & (abs(north) <= CENTRE)):
        return "in the centre"
    up, right = ("north", "east") if compass else ("top", "right")
    down, left = ("south", "west") if compass else ("bottom", "left")
    vertical = up if most(north > ASIDE) else down if most(north < -ASIDE) else ""
    horizontal = right if most(east > ASIDE) else left if most(east < -ASIDE) else ""
    if vertical or horizontal:
        if compass:
            return f"in the {'-'.join(filter(None, (vertical, horizontal)))}"
        return f"{'at' if vertical else 'on'} the {' '.join(filter(None, (vertical, horizontal)))}"
    if share >= LARGELY:
        return "in most of the scene"
    return "in several places" if parts > 1 else "across the middle"


def _sentence(
    text: str,
    numbers: list[int],
    windows: list[Window],
    centres: np.ndarray,
    compass: bool,
    shares: np.ndarray,
    guess: bool,
) -> dict:
    """A row of ``SceneCaption.sentences`` without its geometry."""
    share = float(shares[numbers].sum())
    place = _find_place(numbers, windows, centres, compass, shares)
    words = THE_IMAGE.sub(lambda found: f"{found[1][0]}he window", as_sentence(text))
    return {
        "sentence": f"{place[0].upper()}{place[1:]} ({_percent(share)}{', a guess' * guess}): {words}",
        "caption": text,
        "place": place,
        "share": round(share, 6),
        "windows": tuple(numbers),
        "unlike_training": guess,
    }


def _find_place(
    numbers: Sequence[int], windows: list[Window], centres: np.ndarray, compass: bool, shares: np.ndarray
) -> str:
    """Where the windows of these numbers lie, in words."""
    left, top, width, height = np.array([windows[number] for number in numbers], dtype=np.float64).T
    ground = shapely.union_all(shapely.box(left, top, left + width, top + height))
    weights, parts = shares[numbers], int(shapely.get_num_geometries(ground))
    return say_place(*centres[numbers].T, weights, float(weights.sum()), compass=compass, parts=parts)


def _centres(scene: Scene, windows: list[Window]) -> tuple[np.ndarray, bool]:
    """((n, 2) from -1 to 1: how far to the east and north the windows' centres lie, True), or to the right and up, False."""
    ways = _compass(scene)
    to = np.diag([1.0, -1.0]) if ways is None else ways
    middle = np.array([scene.width, scene.height]) / 2
    edges = abs(np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * middle @ to.T).max(0)
    left, top, width, height = np.array(windows, dtype=np.float64).T
    return (np.stack([left + width / 2, top + height / 2], 1) - middle) @ to.T / edges, ways is not None


def _compass(scene: Scene) -> np.ndarray | None:
    """(2, 2): from pixels to the right and down to metres east and north, at the scene's centre.

    None without a CRS of the Earth, and where north lies elsewhere in other parts of the scene, as around a pole.
    """
    if scene.crs is None:
        return None
    try:
        to = Transformer.from_crs(scene.crs.to_wkt(), "EPSG:4326", always_xy=True)
    except ProjError:  # another planet, or a plan of a building
        return None
    step = max(scene.width, scene.height) / 10_000
    places = np.array([[0.5, 0.5], [0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9]]) * (scene.width, scene.height)

    def degrees(pixels: np.ndarray) -> tuple:
        (x, y), own = pixels.T, scene.transform
        return to.transform(own.a * x + own.b * y + own.c, own.d * x + own.e * y + own.f)

    here, right, down = (degrees(places + offset) for offset in ((0, 0), (step, 0), (0, step)))
    if not np.isfinite([here, right, down]).all():
        return None
    earth, ways = Geod(ellps="WGS84"), []
    for there in (right, down):
        azimuths, _, metres = (np.asarray(part) for part in earth.inv(*here, *there))
        if (abs((azimuths - azimuths[0] + 180) % 360 - 180) > SLANT).any():
            return None
        angle = np.radians(azimuths[0])
        ways.append(metres[0] / step * np.array([np.sin(angle), np.cos(angle)]))
    return np.stack(ways, axis=1)


def _tell(rows: list[dict], most_sentences: int, warning: str) -> str:
    told = [row["sentence"] for row in rows[:most_sentences]]
    rest = rows[most_sentences:]
    if rest:
        share = _percent(sum(row["share"] for row in rest))
        told.append(f"Left out: {len(rest)} more sentence{'s' * (len(rest) > 1)}, on {share} of the scene.")
    return " ".join([*told, warning]).strip()


def _alike(captioner: Captioner) -> float:
    """The median cosine of two different captions of one training image; 1 where none has two."""
    pairs = _caption_pairs(captioner.memory)
    if not pairs:
        return 1.0
    texts = sorted({text for pair in pairs for text in pair})
    vectors, row_of = captioner.encode_captions(texts), {text: row for row, text in enumerate(texts)}
    one, other = (vectors[[row_of[pair[side]] for pair in pairs]].astype(np.float64) for side in (0, 1))
    return float(np.median((one * other).sum(1)).round(6))


def _caption_pairs(memory: Memory) -> list[tuple[str, str]]:
    """All pairs of different captions of up to JUDGED training images, evenly spaced."""
    several = [own for captions in memory.captions.values() if len(own := list(dict.fromkeys(captions))) > 1]
    chosen = several[:: -(-len(several) // JUDGED) or 1]
    return [(own[i], own[j]) for own in chosen for i in range(len(own)) for j in range(i + 1, len(own))]


def _own_areas(windows: Sequence[Window]) -> np.ndarray:
    """(n,) pixels of windows that stand in rows and columns; ground that several show is shared among them."""
    left, top, width, height = np.array(windows).T
    across, down = (_own_lengths(start, int(side[0])) for start, side in ((left, width), (top, height)))
    return across * down


def _own_lengths(starts: np.ndarray, side: int) -> np.ndarray:
    shown = np.zeros(int(starts.max()) + side)
    for start in np.unique(starts):
        shown[start : start + side] += 1
    length = {start: (1 / shown[start : start + side]).sum() for start in np.unique(starts)}
    return np.array([length[start] for start in starts])


def _share_valid(scene: Scene, window: Window) -> float:
    """The share of valid pixels, about: of at most 32 x 32."""
    return float(scene.read(window, (min(window.width, 32), min(window.height, 32))).valid.mean())


def _fit(window: Window, longest: int) -> tuple[int, int]:
    """(width, height) to read a window at."""
    shrink = max(1.0, max(window.width, window.height) / longest)
    return max(1, round(window.width / shrink)), max(1, round(window.height / shrink))


def _percent(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def _place(rows: pd.DataFrame | list[dict], ground: list[shapely.Geometry], scene: Scene) -> "geopandas.GeoDataFrame":
    import geopandas

    return geopandas.GeoDataFrame(
        pd.DataFrame(rows), geometry=ground, crs=None if scene.crs is None else scene.crs.to_wkt()
    )
