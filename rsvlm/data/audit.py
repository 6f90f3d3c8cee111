"""What is odd about a study's sources: what their splits share, their words, counts that are not as published.

Images that show the same and captions word for word, which training images must go for it, misspelt words.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.resources import files
from itertools import combinations, groupby, islice
from pathlib import Path

import numpy as np

from rsvlm.data.catalogue import KNOWN
from rsvlm.data.duplicates import KINDS, Fingerprint, Pair, find_pairs, without_contrast
from rsvlm.data.listings import Listing
from rsvlm.data.local_features import LEAST_SIDE, find_same_ground
from rsvlm.data.names import SPLITS
from rsvlm.data.spill import BLOCK, Made
from rsvlm.data.table import hash_texts
from rsvlm.extras import import_extra

WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
MISSPELT_SHOWN = 30
# Percent of planted near-duplicates that are found, as recorded in benchmarks/results/near_duplicates_cpu_2_cores.json.
RECALL = {
    "copy": {
        "re-encoded, JPEG quality 60": 100.0, "resized to half": 100.0, "brightened by 30 %": 98.2,
        "cropped by 5 %": 96.4, "mirrored": 100.0, "turned by 90 degrees": 100.0, "cropped, mirrored, brightened": 97.6,
    },
    "same_ground": {
        "shifted by 10 %": 100.0, "shifted by 20 %": 100.0, "shifted by 30 %": 94.0, "shifted by 50 %": 96.0,
        "zoomed by 1.25": 98.0, "zoomed by 1.5": 94.0, "zoomed by 1.5, mirrored": 86.0,
        "zoomed by 1.5, turned by 30 degrees": 92.0, "zoomed by 2": 74.0,
    },
}  # fmt: skip


def find_near_duplicates(
    rows: list[dict],
    others: list[dict],
    prints: Mapping[str, Fingerprint],
    drop_from_train: bool,
    val_shares: Mapping[str, float] | None = None,
    seed: int = 0,
    *,
    same_ground: bool = True,
    cache: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[list[dict], list[dict], dict]:
    """The rows that are kept, the pairs of near-duplicates, and the report on them.

    Args:
        rows: of the image table.
        others: rows that are only compared.
        prints: image_id -> fingerprint, for every row of the table and those of the others that have a file.
        drop_from_train: leave out training rows of the table that are a near-duplicate of any test image. Rows of
            other splits are never touched.
        val_shares: source -> share of its training rows that become its validation split, see ``draw_validation``.
        seed: of that draw.
        same_ground: look for the same ground at another zoom, shift or date, too.
        cache: folder of the local features; None = ``cache_folder()``.
        log: takes a line now and then.

    Returns:
        Kept rows; pairs as {first, second, and of both _split and _path, kind, the fields of ``Pair``, dropped},
        sorted; report.

    Raises:
        ModuleNotFoundError: ``same_ground`` needs OpenCV, and it is missing.
    """
    known = sorted((row for row in (*rows, *others) if row["image_id"] in prints), key=lambda row: row["image_id"])
    ordered = Made(len(known), lambda place: prints[known[place]["image_id"]])
    pairs = find_pairs(ordered)
    searched = {"switched_on": same_ground, "images": 0, "images_too_small": 0, "pairs_compared": 0}
    if same_ground:
        more, counts = find_same_ground(ordered, {(one.first, one.second) for one in pairs}, cache=cache, log=log)
        pairs, searched = sorted([*pairs, *more]), searched | counts
    droppable = {row["image_id"] for row in rows if row["split"] == "train"}
    dropped: dict[str, str] = {}  # image_id -> kind of the first pair that it is dropped for
    if drop_from_train:
        for pair in sorted(pairs, key=lambda pair: KINDS.index(pair.kind)):
            for one, other in ((known[pair.first], known[pair.second]), (known[pair.second], known[pair.first])):
                if other["split"] == "test" and one["image_id"] in droppable:
                    dropped.setdefault(one["image_id"], pair.kind)
    kept = [row for row in rows if row["image_id"] not in dropped]
    same = [(known[pair.first]["image_id"], known[pair.second]["image_id"]) for pair in pairs]
    drawn = {name: draw_validation(name, share, kept, same, seed) for name, share in (val_shares or {}).items()}
    listed = [_as_row(pair, known, dropped) for pair in pairs]
    met = Counter((row["kind"], frozenset((row["first_split"], row["second_split"]))) for row in listed)
    report = {
        "pairs": len(listed),
        "pairs_of_equal_files": sum(row["exact"] for row in listed),
        "pairs_between_splits": {
            f"{a}_and_{b}": sum(met[kind, frozenset((a, b))] for kind in KINDS) for a, b in combinations(SPLITS, 2)
        },
        "images_with_a_near_duplicate": _shared_images(pairs, known),
        "images_too_even_to_compare": len(without_contrast(ordered)),
        "dropped_from_train": len(dropped),
        "drawn_for_validation": drawn,
        "by_kind": {
            kind: {
                "pairs": sum(count for (own, _), count in met.items() if own == kind),
                "train_and_test": met[kind, frozenset(("train", "test"))],
                "dropped_from_train": Counter(dropped.values())[kind],
            }
            for kind in KINDS
        },
        "same_ground": searched,
    }
    return kept, listed, report


def draw_validation(source: str, share: float, rows: list[dict], pairs: list[tuple[str, str]], seed: int) -> int:
    """How many training rows of a source became its validation split; the rows are changed in place.

    Images that show the same stay together: whole groups are drawn, and none that holds an image of another split or
    source. Test rows are never touched.

    Args:
        share: of the source's training rows, above 0 and below 1.
        rows: of the image table, all sources.
        pairs: image ids of images that show the same.

    Raises:
        ValueError: nothing can be drawn, or nothing would be left; says why.
    """
    group_of: dict[str, set[str]] = {}
    for first, second in pairs:
        group = group_of.get(first, {first}) | group_of.get(second, {second})
        group_of |= dict.fromkeys(group, group)
    part_of = {row["image_id"]: (row["source"], row["split"]) for row in rows}
    train = sorted(name for name, part in part_of.items() if part == (source, "train"))
    groups = {min(group): group & part_of.keys() for group in (group_of.get(name, {name}) for name in train)}
    own = [group for _, group in sorted(groups.items()) if {part_of[name] for name in group} == {(source, "train")}]
    random.Random(f"{seed}/{source}/val").shuffle(own)
    wanted, drawn = max(1, round(share * len(train))), set()
    for group in own:
        if len(drawn) + len(group) <= wanted:
            drawn |= group
    if not drawn or len(drawn) == len(train):
        why = "none of them can be drawn without parting images that show the same; give a larger share"
        if not train:
            why = "there is none to draw from; bring images or take val_share out"
        elif drawn:
            why = "none would be left to train with; bring more images or give a smaller share"
        raise ValueError(f"sources: {source}: val_share {share} of {len(train):,} training images: {why}")
    for row in rows:
        if row["image_id"] in drawn:
            row["split"] = "val"
    return len(drawn)


def search_scope(same_ground: Mapping | None) -> dict[str, str]:
    """Kind of near-duplicate -> what was looked for, and how much of what was planted among real images that finds.

    Args:
        same_ground: ``report["near_duplicates"]["same_ground"]``, or None where it was not looked for.
    """
    planted = {kind: ", ".join(f"{how} {share:g} %" for how, share in ways.items()) for kind, ways in RECALL.items()}
    scope = {"equal_files": "all", "copy": f"of planted ones are found: {planted['copy']}"}
    if same_ground is None or not same_ground["switched_on"]:
        return scope | {"same_ground": "not looked for"}
    small = same_ground["images_too_small"]
    not_searched = f"; not looked for in {small:,} images, which are smaller than {LEAST_SIDE} pixels" if small else ""
    if not same_ground["images"]:
        return scope | {"same_ground": f"not looked for: all images are smaller than {LEAST_SIDE} pixels"}
    return scope | {"same_ground": f"of planted ones are found: {planted['same_ground']}{not_searched}"}


def verbatim_share(rows: Iterable[Mapping]) -> dict[str, dict[str, float]]:
    """Share of the captions of each source and split that occur word for word in each source and split.

    ``{"ucm/test": {"ucm/train": 0.55, ...}}``; among its own captions, share of those that another image has too. Captions
    pass a block at a time, their hashes are counted.
    """
    said: dict[str, list[np.ndarray]] = {}
    held: dict[str, list[np.ndarray]] = {}
    for part, block in _blocks(rows):
        said.setdefault(part, []).append(hash_texts(text for row in block for text in row["captions"]))
        held.setdefault(part, []).append(hash_texts(text for row in block for text in set(row["captions"])))
    return _shares(said, held)


def sibling_share(rows: Iterable[Mapping]) -> dict[str, dict[str, float]]:
    """Share of the images of each source and split that have a sibling in each source and split.

    Siblings are different images with the same set of captions: what was written of one was given to all. The form is
    ``verbatim_share``'s.
    """
    sets: dict[str, list[np.ndarray]] = {}
    for part, block in _blocks(rows):
        sets.setdefault(part, []).append(hash_texts("\0".join(["", *sorted(set(row["captions"]))]) for row in block))
    return _shares(sets, sets)


def _blocks(rows: Iterable[Mapping]) -> Iterator[tuple[str, list[Mapping]]]:
    """(source/split, rows of it that follow each other), at most BLOCK."""
    for part, own in groupby(rows, _part):
        while block := list(islice(own, BLOCK)):
            yield part, block


def _shares(hashes: Mapping[str, list[np.ndarray]], holders: Mapping[str, list[np.ndarray]]) -> dict[str, dict]:
    """part -> part -> share of the first one's hashes that the second one has, within a part those that it has twice."""
    counted, known = (
        {part: np.unique(np.concatenate(own), return_counts=True) for part, own in sorted(one.items(), key=_in_order)}
        for one in (hashes, holders)
    )

    def shared(name: str, other: str) -> float:
        (own, times), (found, count) = counted[name], known[other]
        _, mine, theirs = np.intersect1d(own, found, assume_unique=True, return_indices=True)
        again = count[theirs] > (other == name)
        return round(int(times[mine][again].sum()) / max(int(times.sum()), 1), 6)

    return {name: {other: shared(name, other) for other in known} for name in counted}


def _shared_images(pairs: list[Pair], known: list[dict]) -> dict[str, dict[str, int]]:
    """``{"ucm/test": {"rsicd/train": 3}}``: images of the first with a near-duplicate in the second; only parts with files."""
    parts = sorted({_part(row) for row in known}, key=lambda part: _in_order((part, None)))
    duplicates: dict[tuple[str, str], set[int]] = {}
    for pair in pairs:
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            duplicates.setdefault((_part(known[one]), _part(known[other])), set()).add(one)
    return {part: {other: len(duplicates.get((part, other), ())) for other in parts} for part in parts}


def _as_row(pair: Pair, known: list[dict], dropped: dict[str, str]) -> dict:
    ends = {"first": known[pair.first], "second": known[pair.second]}
    return {
        **{end: row["image_id"] for end, row in ends.items()},
        **{f"{end}_split": row["split"] for end, row in ends.items()},
        **{f"{end}_path": row["path"] for end, row in ends.items()},
        "kind": pair.kind,
        **{name: value for name, value in asdict(pair).items() if name not in ends},
        "dropped": sorted({row["image_id"] for row in ends.values()} & dropped.keys()),
    }


def _part(row: dict) -> str:
    return f"{row['source']}/{row['split']}"


def _in_order(item: tuple[str, object]) -> tuple[str, int]:
    """Sorts parts by source, then train, val, test."""
    source, split = item[0].rsplit("/", 1)
    return source, SPLITS.index(split)


def caption_facts(captions: Iterable[str]) -> dict:
    """Numbers on a source's captions: distinct ones, their words, the vocabulary, words that occur once."""
    words, counts, hashes, left = Counter(), Counter(), [], iter(captions)
    while block := list(islice(left, BLOCK)):
        words.update(word for caption in block for word in words_of(caption))
        counts.update(len(caption.split()) for caption in block)
        hashes.append(hash_texts(block))
    lengths = sorted(counts.elements())
    spread = {"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]} if lengths else {}
    return {
        "distinct_captions": len(np.unique(np.concatenate(hashes))) if hashes else 0,
        "words": sum(words.values()),
        "vocabulary": len(words),
        "words_that_occur_once": sum(count == 1 for count in words.values()),
        "words_a_caption": spread,
    }


def words_of(caption: str) -> list[str]:
    """The words of a caption, lower case, without digits and punctuation."""
    return WORD.findall(caption.lower())


def published_counts(name: str, listing: Listing) -> list[dict]:
    """Each published count beside the file's: rows with what, published, found. Empty for an unknown source."""
    known = KNOWN.get(name)
    if known is None:
        return []
    read = listing.notes["splits_read"]
    rows = [
        ("images", known.images, len(listing.images)),
        ("captions", known.captions, listing.counts["captions_listed"]),
    ]
    rows += [(f"{split} images", known.splits.get(split), read.get(split, 0)) for split in SPLITS]
    return [{"what": what, "published": told, "found": found} for what, told, found in rows if told is not None]


def english_dictionary(otherwise: str = "set check_spelling to false") -> object:
    """A SpellChecker that knows American and British spellings.

    Raises:
        ModuleNotFoundError: pyspellchecker is missing; says how to install it or how to go on without (``otherwise``).
    """
    speller = import_extra("spellchecker", "the spelling check", otherwise).SpellChecker(language="en", distance=1)
    lines = (files("rsvlm.data") / "british_spellings.txt").read_text(encoding="utf-8").splitlines()
    speller.word_frequency.load_words([line for line in lines if not line.startswith("#")])
    return speller


def find_misspelt(captions: Iterable[str]) -> dict:
    """Words that an English dictionary does not know: how many kinds, how often, and the most frequent with a guess.

    American and British spellings are both known. The guess is the captions' own most frequent word one letter away,
    else the dictionary's. Some candidates are real words that the dictionary lacks; a person has to look.

    Raises:
        ModuleNotFoundError: pyspellchecker is missing.
    """
    speller = english_dictionary()
    counts = Counter(word for caption in captions for word in words_of(caption))
    parts = {word: [part for part in re.split(r"['-]", word) if len(part) > 2] for word in counts}
    unknown = {word for word, pieces in parts.items() if speller.unknown([word]) and speller.unknown(pieces)}
    rows = []
    for word in sorted(unknown, key=lambda word: (-counts[word], word)):
        guesses = speller.candidates(word) or set()
        own = [guess for guess in guesses if guess != word and counts[guess] > counts[word]]
        guess = max(own, key=lambda g: (counts[g], g)) if own else speller.correction(word)
        rows.append({"word": word, "times": counts[word], "perhaps": guess if guess != word else None})
    return {
        "words": len(rows),
        "times": sum(row["times"] for row in rows),
        "words_with_a_guess": sum(row["perhaps"] is not None for row in rows),
        "most_frequent": rows[:MISSPELT_SHOWN],
    }
