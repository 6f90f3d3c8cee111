"""How many planted twins the audit finds, how many different pictures it takes for twins, and how long it takes.

``python benchmarks/twins.py FOLDER... [--images 400] [--out FILE]``: draws images from the folders, alters a copy of
each in every way, and looks for twins among originals and copies. A pair of an original and its own copy is a find; a
pair of two different originals, or of an original and another's copy, is suspect: real folders hold real twins, so
their names are listed for a person to look at. Prints a table and writes a JSON file with versions and machine.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageEnhance

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rsvlm.data.fingerprints import fingerprint_images, usable_cores  # noqa: E402
from rsvlm.data.images import EXTENSIONS, open_image  # noqa: E402
from rsvlm.data.twins import find_pairs, without_contrast  # noqa: E402
from rsvlm.files import write_json  # noqa: E402
from rsvlm.provenance import provenance  # noqa: E402


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


def measure(folders: list[Path], images: int, seed: int) -> dict:
    """Recall by alteration, suspect pairs, and seconds."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    originals = sorted(random.Random(seed).sample(files, min(images, len(files))))
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


def main() -> None:
    """Run it and show it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=400, help="originals drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/twins.json"))
    arguments = parser.parse_args()
    result = measure(arguments.folders, arguments.images, arguments.seed)
    for name, share in result["recall"].items():
        print(f"{name:32} {100 * share:6.1f} % of {result['originals']} found")
    print(f"pairs of different originals: {len(result['pairs_of_different_originals'])}; look at them:")
    for row in result["pairs_of_different_originals"]:
        print("   ", *row)
    print(f"other pairs across originals: {result['other_pairs_across_originals']}")
    print(f"{result['images_compared']} images: {result['seconds']}")
    write_json(arguments.out, result | {"provenance": provenance(arguments.seed, "cpu")})


if __name__ == "__main__":
    main()
