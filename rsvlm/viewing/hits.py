"""Images as the search box and the dialogue show them: a small picture with what is known of it, as values of JSON."""

from collections.abc import Mapping, Sequence

from rsvlm.viewing.browse import Archive
from rsvlm.viewing.thumbnail_cache import ThumbnailCache


def show_image(archive: Archive, cache: ThumbnailCache, image_id: str) -> dict[str, object]:
    """``{"id", "name", "label", "split", "picture", "trouble", "references", "said"}`` of an image of the archive.

    Raises:
        ValueError: there is no such image.
    """
    if image_id not in archive.table.index:
        raise ValueError(f"no image {image_id!r} in the archive")
    row = archive.table.loc[image_id]
    picture, trouble = None, None
    try:
        picture = cache.make([row["path"]])[row["path"]].uri
    except (OSError, ValueError) as error:  # said in the picture's place, the others are shown
        trouble = str(error)
    run, own = next(iter(archive.runs.items()), ("", {}))
    return {
        "id": image_id,
        "name": image_id.split("/", 1)[-1],
        "label": row["label"] or "",
        "split": row["split"],
        "picture": picture,
        "trouble": trouble,
        "references": list(dict.fromkeys(row["captions"])),
        "said": {"run": run, "text": own[image_id]} if image_id in own else None,
    }


def show_hits(
    archive: Archive, cache: ThumbnailCache, hits: Sequence[tuple[str, float]], right: frozenset[str] = frozenset()
) -> list[dict[str, object]]:
    """The images of a search with their scores, best first, and whether they are right answers."""
    return [
        show_image(archive, cache, image_id) | {"score": round(score, 4), "right": image_id in right}
        for image_id, score in hits
    ]


def find_images(archive: Archive, words: str, count: int, split: str | None) -> list[str]:
    """Ids of the first images whose id, class or captions hold all words, case ignored; those of a split, or all."""
    wanted = words.lower().split()
    found: list[str] = []
    for image_id, own, label, captions in zip(
        archive.table["image_id"], archive.table["split"], archive.table["label"], archive.table["captions"], strict=True
    ):
        if split is not None and own != split:
            continue
        text = " ".join([image_id, label or "", *captions]).lower()
        if all(word in text for word in wanted):
            found.append(image_id)
            if len(found) == count:
                break
    return found


def shown_captions(captions: Mapping[str, str]) -> list[dict[str, str]]:
    """Captions by run as a list, in their order."""
    return [{"run": run, "text": text} for run, text in captions.items()]
