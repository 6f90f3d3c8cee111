"""What test and training share: image files that are equal byte for byte, and captions that occur word for word."""

from itertools import combinations

from rsvlm.data.table import SPLITS

GROUPS_SHOWN = 20  # groups of twins that the report lists before it only counts


def find_twins(rows: list[dict], digests: dict[str, str], drop_from_train: bool) -> tuple[list[dict], dict]:
    """The rows that are kept and the report on equal image files.

    Args:
        rows: of the image table.
        digests: image_id -> SHA-256 of its file.
        drop_from_train: leave out training images that equal a test image, of whichever source.
    """
    groups: dict[str, list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["image_id"]):
        groups.setdefault(digests[row["image_id"]], []).append(row)
    twins = [group for group in groups.values() if len(group) > 1]
    shared = {
        f"{a}_and_{b}": sum({a, b} <= {row["split"] for row in group} for group in twins)
        for a, b in combinations(SPLITS, 2)
    }
    leaks = {
        row["image_id"]
        for group in twins
        if any(row["split"] == "test" for row in group)
        for row in group
        if row["split"] == "train"
    }
    dropped = leaks if drop_from_train else set()
    report = {
        "groups": len(twins),
        "groups_shared_by_splits": shared,
        "dropped_from_train": len(dropped),
        "first_groups": [[f"{row['image_id']} ({row['split']})" for row in group] for group in twins[:GROUPS_SHOWN]],
    }
    return [row for row in rows if row["image_id"] not in dropped], report


def verbatim_share(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Share of each source's test captions that occur word for word among each source's training captions.

    ``{test source: {training source: fraction}}``; sources without test captions are left out.
    """
    train: dict[str, set[str]] = {}
    test: dict[str, list[str]] = {}
    for row in rows:
        if row["split"] == "train":
            train.setdefault(row["source"], set()).update(row["captions"])
        elif row["split"] == "test":
            test.setdefault(row["source"], []).extend(row["captions"])
    return {
        name: {
            other: round(sum(text in known for text in texts) / len(texts), 6) for other, known in sorted(train.items())
        }
        for name, texts in sorted(test.items())
    }
