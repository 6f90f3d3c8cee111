"""The named fixes: what a reader mends in released files. A source can switch each off; the report counts them."""

from collections import Counter
from dataclasses import dataclass

from rsvlm.data.names import closest_name


@dataclass(frozen=True)
class Fix:
    """What a fix does, and which of a listing's counts say how often its defect was met."""

    does: str
    counted_as: tuple[str, ...]


FIXES = {
    "rsicd_swapped_splits": Fix(
        "RSICD's official test set, known by its file names, gets its name back where a file calls it val",
        ("splits_found_swapped",),
    ),
    "text_from_raw": Fix(
        "captions are the `raw` text; off: the `tokens`, where they are other words",
        ("captions_with_other_tokens",),
    ),
    "blank_captions": Fix(
        "captions without a letter or digit are left out", ("captions_blank_dropped", "captions_blank_kept")
    ),
    "extra_spaces": Fix("runs of spaces become one", ("captions_with_extra_spaces",)),
    "other_extension": Fix(
        "a listed file is found under another extension (1.jpg for 1.tif)", ("images_with_another_extension",)
    ),
    "other_folder": Fix(
        "a listed file is found by its name in another folder, where the listed folder does not exist and one file "
        "alone has that name",
        ("images_in_another_folder",),
    ),
    "boxes_clipped": Fix(
        "boxes that reach over the image's edge are cut there; off: they stop the reader", ("boxes_over_the_edge",)
    ),
    "boxes_without_area": Fix(
        "boxes without width or height are left out; off: they stop the reader", ("boxes_without_area",)
    ),
}
ALL = frozenset(FIXES)


def check_fixes(names: list[str] | None) -> frozenset[str]:
    """The fixes that may be applied: all for None.

    Raises:
        ValueError: an unknown name; names the closest.
    """
    if names is None:
        return ALL
    for name in names:
        if name not in FIXES:
            raise ValueError(f"fixes: unknown fix {name!r}{closest_name(name, FIXES)}")
    return frozenset(names)


def fixes_report(counts: Counter, allowed: frozenset[str]) -> dict[str, dict]:
    """Fix -> whether it was on and how often its defect was met, for every fix that was on or whose defect was met."""
    met = {name: sum(counts[key] for key in fix.counted_as) for name, fix in FIXES.items()}
    return {name: {"on": name in allowed, "met": met[name]} for name in FIXES if met[name]}
