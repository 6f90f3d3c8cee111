"""How many planted near-duplicates the audit finds, how many different pictures it takes for such, and how long it takes.

``python benchmarks/near_duplicates.py FOLDER... [--images 400] [--out FILE]`` measures the two searches of the audit:

- copies: draws images from the folders, alters a copy of each in every way, and searches originals and copies;
- the same ground: draws as many other images, makes of each two views that overlap in one way, and searches them among
  all other images of the folders. The second view is brightened or darkened by 15 % and saved as JPEG of quality 75.

A pair of one image's pictures is a find; a pair of two different images' is suspect: real folders hold real
near-duplicates, so their names are listed for a person to look at. Prints tables and writes a JSON file with versions
and machine.
"""

import argparse
import random
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rsvlm.cluster import usable_cores
from rsvlm.data.duplicates import find_pairs, fingerprint_images, without_contrast
from rsvlm.data.images import EXTENSIONS, open_image
from rsvlm.data.local_features import LEAST_SIDE, find_same_ground
from rsvlm.files import write_json
from rsvlm.study.recording import provenance


def crop(image: Image.Image, draw: random.Random, keep: float = 0.95) -> Image.Image:
    """A part with 95 % of the sides, at a random place."""
    width, height = round(keep * image.width), round(keep * image.height)
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


ALTERATIONS = {
    "re-encoded, JPEG quality 60": lambda image, draw: image,
    "resized to half": lambda image, draw: image.resize((image.width // 2, image.height // 2)),
    "brightened by 30 %": lambda image, draw: ImageEnhance.Brightness(image).enhance(1.3),
    "cropped by 5 %": crop,
    "mirrored": lambda image, draw: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by 90 degrees": lambda image, draw: image.transpose(Image.Transpose.ROTATE_90),
    "cropped, mirrored, brightened": lambda image, draw: ImageEnhance.Brightness(
        crop(image, draw).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    ).enhance(1.15),
}


def zoom(image: Image.Image, draw: random.Random, factor: float) -> Image.Image:
    """A part at a random place, enlarged to the size of the whole."""
    return crop(image, draw, 1 / factor).resize(image.size, Image.Resampling.BICUBIC)


def shift(image: Image.Image, draw: random.Random, share: float) -> tuple[Image.Image, Image.Image]:
    """Two square parts of one size, one beside the other by a share of their side, enlarged."""
    across = draw.random() < 0.5
    long, short = image.size if across else image.size[::-1]
    side = min(int(long / (1 + share)), short)
    along, away = draw.randint(0, long - side - int(share * side)), draw.randint(0, short - side)
    starts = [along, along + int(share * side)]
    draw.shuffle(starts)
    corners = [(start, away) if across else (away, start) for start in starts]
    return tuple(
        image.crop((x, y, x + side, y + side)).resize((long, long), Image.Resampling.BICUBIC) for x, y in corners
    )


VIEWS = {
    "zoomed by 1.25": lambda image, draw: (image, zoom(image, draw, 1.25)),
    "zoomed by 1.5": lambda image, draw: (image, zoom(image, draw, 1.5)),
    "zoomed by 2": lambda image, draw: (image, zoom(image, draw, 2)),
    "shifted by 10 %": lambda image, draw: shift(image, draw, 0.1),
    "shifted by 20 %": lambda image, draw: shift(image, draw, 0.2),
    "shifted by 30 %": lambda image, draw: shift(image, draw, 0.3),
    "shifted by 50 %": lambda image, draw: shift(image, draw, 0.5),
    "zoomed by 1.5, turned by 30 degrees": lambda image, draw: (
        image, ImageOps.fit(ImageOps.crop(image.rotate(30, Image.Resampling.BICUBIC), min(image.size) // 6), image.size)
    ),
    "zoomed by 1.5, mirrored": lambda image, draw: (
        image, zoom(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), draw, 1.5)
    ),
}  # fmt: skip


def plant(originals: list[Path], folder: Path, seed: int) -> dict[str, list[Path]]:
    """Altered copies of every original by the name of the alteration, saved as JPEG of quality 85 (re-encoded: 60)."""
    planted: dict[str, list[Path]] = {}
    for number, (name, alter) in enumerate(ALTERATIONS.items()):
        for place, path in enumerate(originals):
            copy = folder / f"{number}_{place:05d}.jpg"
            altered = alter(open_image(path), random.Random(f"{seed}/{name}/{place}"))
            altered.save(copy, quality=60 if number == 0 else 85)
            planted.setdefault(name, []).append(copy)
    return planted


def measure_copies(originals: list[Path], seed: int) -> dict:
    """Recall of copies by alteration, suspect pairs, and seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        planted = plant(originals, Path(scratch), seed)
        paths = [*originals, *(path for copies in planted.values() for path in copies)]
        start = time.perf_counter()
        prints = fingerprint_images(paths, cache=Path(scratch) / "cache")
        hashed = time.perf_counter()
        pairs = find_pairs(prints)
        searched = time.perf_counter()
        n = len(originals)
        found = {name: set() for name in planted}
        suspect = []
        names = list(planted)
        for pair in pairs:
            one, other = pair.first % n, pair.second % n
            if one == other:
                if pair.first < n <= pair.second:
                    found[names[pair.second // n - 1]].add(one)
            elif pair.first < n and pair.second < n:
                suspect.append([originals[one].name, originals[other].name, pair.turn, pair.correlation])
        known = {frozenset(row[:2]) for row in suspect}
        wrong = sum(
            1
            for pair in pairs
            if pair.first % n != pair.second % n
            and frozenset((originals[pair.first % n].name, originals[pair.second % n].name)) not in known
        )
        even = [originals[place].name for place in without_contrast(prints[:n])]
    return {
        "originals": n,
        "images_compared": len(paths),
        "recall": {name: round(len(places) / n, 4) for name, places in found.items()},
        "pairs_of_different_originals": suspect,
        "other_pairs_across_originals": wrong,
        "pairs_of_originals_compared": n * (n - 1) // 2,
        "originals_too_even": even,
        "seconds": {"fingerprints": round(hashed - start, 2), "pairs": round(searched - hashed, 2)},
        "processes": usable_cores(),
        "seed": seed,
    }


def measure_views(originals: list[Path], others: list[Path], seed: int) -> dict:
    """Recall of two views of the same ground, one way for each original in turn, suspect pairs, and seconds."""
    names = list(VIEWS)
    with tempfile.TemporaryDirectory() as scratch:
        pictures, labels = list(others), [(path.name, None) for path in others]
        for place, path in enumerate(originals):
            name = names[place % len(names)]
            draw = random.Random(f"{seed}/{name}/{place}")
            first, second = VIEWS[name](open_image(path), draw)
            second = ImageEnhance.Brightness(second).enhance(draw.choice((0.85, 1.15)))
            for number, (view, quality) in enumerate(((first, 90), (second, 75))):
                pictures.append(Path(scratch) / f"{number}_{place:05d}.jpg")
                view.save(pictures[-1], quality=quality)
                labels.append((path.name, name))
        prints = fingerprint_images(pictures, cache=Path(scratch) / "cache")
        start = time.perf_counter()
        pairs, counts = find_same_ground(prints, set(), cache=Path(scratch) / "cache")
        searched = time.perf_counter()
        again, _ = find_same_ground(prints, set(), cache=Path(scratch) / "cache")
        cached = time.perf_counter()
    if again != pairs:
        raise AssertionError("the cache gives other pairs than the first search")
    planted = {name: originals[number :: len(names)] for number, name in enumerate(names)}
    found = {name: set() for name in names}
    suspect = []
    for pair in pairs:
        (one, name), (other, _) = labels[pair.first], labels[pair.second]
        if one == other and name:
            found[name].add(one)
        elif one != other:
            suspect.append([one, other, pair.matches, pair.zoom, pair.degrees, pair.overlap])
    return {
        "originals": {name: len(paths) for name, paths in planted.items()},
        "recall": {name: round(len(found[name]) / max(len(paths), 1), 4) for name, paths in planted.items()},
        "pairs_of_different_originals": suspect,
        "seconds": {"all": round(searched - start, 2), "again": round(cached - searched, 2)},
        **counts,
    }


def main() -> None:
    """Run it and show it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=400, help="originals drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/near_duplicates.json"))
    arguments = parser.parse_args()
    files = sorted(
        path for folder in arguments.folders for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS
    )
    drawn = random.Random(arguments.seed).sample(files, len(files))
    originals = sorted(drawn[: arguments.images])
    large = (path for path in drawn[arguments.images :] if min(open_image(path).size) >= LEAST_SIDE)
    viewed = sorted(islice(large, arguments.images))
    result = measure_copies(originals, arguments.seed)
    result["same_ground"] = measure_views(viewed, sorted(set(files) - set(viewed)), arguments.seed)
    for part, n in ((result, result["originals"]), (result["same_ground"], None)):
        for name, share in part["recall"].items():
            print(f"{name:40} {100 * share:6.1f} % of {n or part['originals'][name]} found")
        print(f"pairs of different originals: {len(part['pairs_of_different_originals'])}; look at them:")
        for row in part["pairs_of_different_originals"]:
            print("   ", *row)
        print(f"seconds: {part['seconds']}")
    print(f"other pairs across originals: {result['other_pairs_across_originals']}")
    write_json(arguments.out, result | {"provenance": provenance(arguments.seed, "cpu")})


if __name__ == "__main__":
    main()
