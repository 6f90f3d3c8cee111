"""What can be said about a study's sources before a stage starts: settings, files that are missing or not watched.

Only paths are looked at and nothing heavy is imported, so that a mistake shows at once.
"""

from collections.abc import Mapping
from pathlib import Path

from rsvlm.data.names import SPLITS
from rsvlm.data.sources import FOLDER, Source, missing_split, parse_sources, place_of


def check_sources(values: Mapping, root: Path) -> None:
    """Check the section ``aggregate_data`` as far as that goes without opening a file of data.

    Args:
        values: the section, names and types checked.
        root: the project's.

    Raises:
        ValueError: lists every wrong setting, or every file or folder that is missing or that DVC would not watch.
    """
    sources = parse_sources(values["sources"])
    problems = []
    for source in sources:
        allow = values["allow_missing_images"] if source.allow_missing_images is None else source.allow_missing_images
        optional = {"images"} if allow or source.use == "audit" else set()
        for key, path in source.paths:
            problem = _problem_of(source, key, path, values["data_root"], root, key in optional)
            problems += [f"sources: {source.name}: {key}: {problem}"] if problem else []
    problems += _missing_splits([source for source in sources if source.use == "all"])
    if values["max_images_per_split"] is not None and values["max_images_per_split"] < 1:
        problems.append(f"max_images_per_split must be at least 1 or null, is {values['max_images_per_split']}")
    if problems:
        raise ValueError("\n  ".join(problems))


def _problem_of(source: Source, key: str, path: str, data_root: str, root: Path, optional: bool) -> str | None:
    """What is wrong with one path of a source, or None."""
    try:
        place = place_of(path, data_root, root)
    except ValueError as error:
        return str(error)
    link = _folder_link(place, root / data_root)
    if link:
        return (
            f"{link} is a link to a folder, and DVC does not look behind it: after a change there the stage would not "
            "run again. Copy the folder, or hard-link its files (`cp -al`, which takes no room), or set data_root to a "
            "folder that holds it; data_root itself and single files may be links"
        )
    if not place.exists():
        return None if optional else f"{place} does not exist; data/raw/README.md says what is expected where"
    folder = key == "images" or (key == "annotations" and source.format in FOLDER)
    return None if place.is_dir() == folder else f"{place} must be a {'folder' if folder else 'file'}"


def _missing_splits(entering: list[Source]) -> list[str]:
    """Splits that no source can give, where every source names a file a split."""
    if not entering or not all(isinstance(source.annotations, Mapping) for source in entering):
        return []
    given = {split for source in entering for split in source.annotations}
    given |= {"val" for source in entering if source.val_share and "train" in source.annotations}
    return [missing_split(split) for split in SPLITS if split not in given]


def _folder_link(place: Path, top: Path) -> Path | None:
    """The first folder below ``top`` on the way to a place that is a link."""
    steps = [place, *place.parents]
    inside = [step for step in steps if step != top and step.is_relative_to(top)]
    return next((step for step in reversed(inside) if step.is_symlink() and step.is_dir()), None)
