"""What a model's training data hold of the test set that it is scored on: its images, near-duplicates, captions."""

from collections.abc import Mapping, Sequence

from rsvlm.data.catalogue import KNOWN
from rsvlm.data.names import SPLITS, check_split
from rsvlm.scoring.image_matching import begins_with

UNKNOWN = "unknown"
NONE_KNOWN = "none known"
SHARED_IMAGES = (("rsicd", "rsitmd"),)  # benchmarks that took images from each other, see data_cards/rsitmd.md
TWO_TEST_SETS = ("rsicd",)  # a widely copied file calls the official test split val, and papers report on both


def leak_flags(
    trained_on: Sequence[str] | str | None, leaks: str, source: str, split: str, audit: Mapping | None = None
) -> list[str]:
    """Sentences about a model and a test set, the gravest first; ``["none known"]`` where there is nothing to tell.

    Args:
        trained_on: parts of captioned benchmarks, ``rsicd/train``, or ``rsicd`` for the whole; None or "unknown" where
            the training data are not published.
        leaks: what else is known, as in a preset; it comes last. May be empty.
        source: of the study, such as ``rsicd_retrieval``; it is of the known source that its name begins with.
        split: that is scored.
        audit: the report of ``rsvlm.data.aggregate``, as in ``report.json``, if there is one.

    Raises:
        ValueError: ``trained_on`` is no list, or names a split that does not exist; ``split`` does not exist.
    """
    check_split(split, "split")
    if trained_on is None or trained_on == UNKNOWN:
        return [f"{UNKNOWN}: training data not published", *filter(None, [leaks])]
    seen, near, said, allowed = [], [], [], []
    for name, own_split in _parts_of(trained_on):
        part, shared = f"{name}/{own_split}", False
        if family_of(name) == family_of(source):
            image_flag, is_leak = _own_benchmark(name, own_split, source, split)
            (seen if is_leak else allowed).append(image_flag)
        elif shared := _share_images(name, source):
            theirs, ours = (KNOWN[family_of(one)].title for one in (name, source))
            near.append(f"trained on {part}: {theirs} and {ours} share images, so {split} images may be among them")
        for found in _audited_parts(name, own_split, source, split, audit or {}):
            near += _near_duplicates(found, source, split, audit, tell_none=shared)
            said += _verbatim(found, source, split, audit)
    flags = list(dict.fromkeys([*seen, *near, *said, *allowed]))  # a part may be named twice
    return [*(flags or [NONE_KNOWN]), *filter(None, [leaks])]


def family_of(source: str) -> str:
    """The known source that a name begins with, ``rsicd`` of ``rsicd_retrieval``; of any other the name itself."""
    fitting = [known for known in KNOWN if begins_with(source, known)]
    return max(fitting, key=len, default=source.casefold())


def _parts_of(trained_on: Sequence[str] | str) -> list[tuple[str, str]]:
    """(source, split) of each part; a source without a split stands for all of its splits."""
    if not isinstance(trained_on, list | tuple) or not all(isinstance(part, str) for part in trained_on):
        raise ValueError(f'trained_on: needs a list of parts such as ["ucm/train"], or "{UNKNOWN}"; is {trained_on!r}')
    parts = []
    for part in trained_on:
        name, slash, own_split = part.strip().partition("/")
        if not name:
            raise ValueError(f"trained_on: {part!r} names no source; write it as ucm/train")
        if slash:
            check_split(own_split, f"trained_on: {part}")
        parts += [(name, one) for one in ([own_split] if slash else SPLITS)]
    return parts


def _share_images(name: str, source: str) -> bool:
    return any({family_of(name), family_of(source)} == set(pair) for pair in SHARED_IMAGES)


def _same_images(name: str, source: str) -> bool:
    """Whether equal splits of two names of one benchmark may hold the same images: not those of its two test sets."""
    family, names = family_of(source), {name.casefold(), source.casefold()}
    return family_of(name) == family and (family not in TWO_TEST_SETS or len(names) == 1 or family in names)


def _own_benchmark(name: str, own_split: str, source: str, split: str) -> tuple[str, bool]:
    """What training on a part of the scored benchmark means, and whether the scored images are, or may be, in it."""
    part = f"{name}/{own_split}"
    family = family_of(source)
    same_name = name.casefold() == source.casefold()
    if family in TWO_TEST_SETS and not (same_name and own_split == split) and "train" not in (own_split, split):
        title = KNOWN[family].title
        if not _same_images(name, source):
            return f"trained on {part}, the other test set of {title}: other images than these", False
        return (
            f"may be trained on these {split} images: it was trained on {part}, and {title} has two test sets under one "
            "name, because a common file swaps val and test",
            True,
        )
    if own_split == split:
        return f"trained on these {split} images: {part} is among its training data", True
    meaning = {"train": "the training split", "val": "the validation split", "test": "the test split"}[own_split]
    return f"trained on {part}, {meaning} of this benchmark{', as is usual' if own_split == 'train' else ''}", False


def _audited_parts(name: str, own_split: str, source: str, split: str, audit: Mapping) -> list[str]:
    """Parts of the audited study that belong to a part of a benchmark, but for what is scored.

    Images that the study drew for validation are training images of the benchmark.
    """
    parts = []
    for own, facts in audit.get("sources", {}).items():
        if _same_images(own, name):
            drawn = own_split == "train" and facts.get("images_drawn_for_validation", 0)
            parts += [f"{own}/{one}" for one in ((own_split, "val") if drawn else (own_split,))]
    return [part for part in parts if part != f"{source}/{split}"]


def _near_duplicates(part: str, source: str, split: str, audit: Mapping, tell_none: bool) -> list[str]:
    counts = audit.get("near_duplicates", {}).get("images_with_a_near_duplicate", {})
    count = counts.get(f"{source}/{split}", {}).get(part)
    if not count:
        none = f"no {split} image has a near-duplicate in {part}, as far as the study's audit sees"
        return [none] if tell_none and count == 0 else []
    images = audit["sources"][source]["images"][split]
    return [f"{count:,} of {images:,} {split} images have a near-duplicate in {part}, as the study's audit found"]


def _verbatim(part: str, source: str, split: str, audit: Mapping) -> list[str]:
    share = audit.get("verbatim", {}).get(f"{source}/{split}", {}).get(part)
    if share is None or (share == 0 and family_of(part.split("/")[0]) != family_of(source)):
        return []
    return [f"{100 * share:.1f} % of the captions of the {split} images stand word for word in {part}"]
