"""An archive of many scenes embedded scene by scene, into a folder.

``embed_archive`` fills it: a GeoParquet file a scene, as ``embed_scene`` writes it, the list ``scenes.parquet``, which
``load_archive`` reads, and where a tier is asked for the folder of ``scenes.window_index``.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import geopandas
import shapely
from pyarrow import ArrowException

from rsvlm.data.rasters.files import SceneError
from rsvlm.files import fingerprint_values, whole_file
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.faiss_tier import MEMORY
from rsvlm.models.tiers import RECALL, check_tier
from rsvlm.progress import log_line
from rsvlm.scenes.archive import COLUMNS, NAMED, SceneArchive, open_archive
from rsvlm.scenes.embedding import embed_scene
from rsvlm.scenes.window_index import index_windows, open_windows

LIST = "scenes.parquet"  # of an embedded archive
HOPELESS = 20  # scenes that fail before any succeeds: then it is not the scenes


def embed_archive(
    encoder: DualEncoder,
    archive: SceneArchive | Path | str,
    folder: Path | str,
    *,
    bands: Sequence[int | str] | str | None = None,
    stretch: str | Sequence = "auto",
    percentiles: tuple[float, float] = (2.0, 98.0),
    unreadable: str = "raise",
    tier: str | None = None,
    memory: int = MEMORY,
    recall: float = RECALL,
    log: Callable[[str], None] = log_line,
    **options: object,
) -> SceneArchive:
    """The scenes with the embeddings of their windows, now in ``folder``: a GeoParquet file each, and ``scenes.parquet``.

    What is there with the same scene, encoder and settings is not computed again, so a killed run goes on where it was.
    The list is that of the last call and is written at its end: while it is missing, the folder is not finished. A scene
    that cannot be read is told of and the others go on, unless the first HOPELESS all fail.

    Args:
        archive: what ``open_archive`` gave, or takes.
        bands, stretch, percentiles: as ``open_scene`` takes them, for every scene.
        unreadable: ``raise``: an error at the end that names scenes that could not be read; ``keep``: none, they are in
            the list with the column ``trouble``.
        tier: ``faiss`` or ``lancedb`` lay the windows of all scenes into a tier beside the files, which ``search_archive`` then asks
            instead of reading every file; ``exact``: no tier, one that is there goes; None: what is there, at first ``exact``.
        memory, recall: of a tier, as ``rsvlm.models.index.build_index`` takes them.
        options: as ``embed_scene`` takes them, but for ``within``.

    Returns:
        The archive with the columns ``file`` (in ``folder``), ``windows`` (their number) and ``trouble``, without the
        scenes that have some.

    Raises:
        ModuleNotFoundError: the tier's package is not installed.
        SceneError: an empty archive, or scenes that could not be read.
        ValueError: a setting is out of range, for example of ``embed_scene``, or there is no such tier.
    """
    if unreadable not in ("raise", "keep"):
        raise ValueError(f"unreadable: {unreadable!r} is neither 'raise' nor 'keep'")
    if tier is not None:
        check_tier(tier)
    if "within" in options:
        raise ValueError("within: an archive's scenes have different coordinate systems; filter the archive instead")
    archive = archive if isinstance(archive, SceneArchive) else open_archive(archive)
    if not len(archive):
        raise SceneError(f"{archive.place}: no scene to embed")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    frame = archive.scenes.drop(columns=["file", "windows", "trouble"], errors="ignore")
    files = [_file_name(name) for name in frame["scene"]]
    windows, troubles = [0] * len(frame), [""] * len(frame)
    for row, (name, file) in enumerate(zip(frame["scene"], files)):
        log(f"scene {row + 1} of {len(frame)}: {name}")
        try:
            with archive.open(name, bands=bands, stretch=stretch, percentiles=percentiles) as scene:
                for note in scene.notes:
                    log(f"{name}: {note}")
                windows[row] = len(embed_scene(encoder, scene, folder / file, log=log, **options))
        except (SceneError, FileNotFoundError, PermissionError) as error:
            troubles[row] = str(error)
            log(f"{name}: left out: {error}")
            if row + 1 == HOPELESS and not any(windows):
                raise SceneError(
                    f"the first {HOPELESS} scenes all fail, the last with: {error}; nothing was listed in {folder / LIST}"
                ) from error
    frame = frame.assign(file=files, windows=windows, trouble=troubles)
    index_windows(folder, frame[frame["trouble"] == ""], tier, memory, recall, log)
    with whole_file(folder / LIST) as path:
        frame.to_parquet(path, index=False)
    bad = [(name, why) for name, why in zip(frame["scene"], troubles) if why]
    if bad and unreadable == "raise":
        told = "; ".join(f"{name} ({why})" for name, why in bad[:NAMED]) + ("; ..." if len(bad) > NAMED else "")
        raise SceneError(
            f"{len(bad)} of {len(frame)} scenes could not be embedded: {told}; the others are done and in {folder / LIST}; "
            "mend or leave out these, or go on without them: unreadable='keep'"
        )
    return load_archive(folder)


def load_archive(folder: Path | str) -> SceneArchive:
    """What ``embed_archive`` left in a folder, ready to be filtered and searched.

    Raises:
        FileNotFoundError: no list there, or a file that it names is missing.
        SceneError: a list that is not one of ``embed_archive``.
        ValueError: the configuration of a tier is damaged.
    """
    folder = Path(folder)
    path = folder / LIST
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `rsvlm scene embed` writes it when all scenes are done")
    try:
        frame = geopandas.read_parquet(path)
    except (ValueError, TypeError, OSError, ArrowException, shapely.errors.ShapelyError) as error:
        raise SceneError(f"{path}: no list of scenes that can be read ({error}); embed the archive again") from error
    if lacking := [name for name in (*COLUMNS, "file", "windows", "trouble") if name not in frame]:
        raise SceneError(f"{path}: no list of an embedded archive, it lacks the columns {', '.join(lacking)}")
    for name in frame["file"]:
        if not isinstance(name, str) or name != os.path.basename(name) or not name.endswith(".parquet"):
            raise SceneError(f"{path}: {name!r} is no file of this folder; embed the archive again")
    good = (frame["trouble"] == "").to_numpy()
    for name in frame["file"][good]:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing, though {path} tells of it; embed the archive again")
    skipped = tuple(frame.loc[~good, ["scene", "trouble"]].itertuples(index=False, name=None))
    return SceneArchive(frame[good].reset_index(drop=True), str(folder), skipped, windows=open_windows(folder))


def _file_name(scene: str) -> str:
    """Of a scene's embeddings; different for different scenes, also where a file system knows no capitals."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', scene).strip('.')[:80]}-{fingerprint_values(scene)[:8]}.parquet"
