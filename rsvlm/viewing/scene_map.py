"""A map of a scene, or of an archive of scenes, in a notebook: look, search by text or by a box, caption, export.

``scene_layers`` has the map, ``scene_panel`` what stands beside it. Encoder and captioner are loaded, and a scene's windows
embedded, when they are first needed (``scene_models``); embeddings are kept.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ipyleaflet
from ipywidgets import Box, Layout

from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.scene import Scene, open_scene
from rsvlm.files import cache_folder
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.inference import Captioner
from rsvlm.models.tiers import check_tier
from rsvlm.scenes.archive import SceneArchive, open_archive
from rsvlm.scenes.globe import make_globe
from rsvlm.scenes.search import Surface
from rsvlm.scenes.window_files import SceneEmbeddings, load_scene_embeddings
from rsvlm.viewing.records import StudyFiles
from rsvlm.viewing.scene_models import SceneModels
from rsvlm.viewing.scene_panel import ScenePanel
from rsvlm.viewing.widgets import TOLD

if TYPE_CHECKING:
    import geopandas

EXAMPLES = ("snow and ice", "a harbour with many boats", "dense forest")


class SceneMap(Box):
    """A scene, or an archive of scenes, on a map with a panel beside it.

    Args:
        scene: an open Scene, or the path of a file that ``open_scene`` reads; a SceneArchive, a folder of scenes, or a
            STAC document on disk.
        encoder: loaded, or its folder or name; it searches.
        captioner: loaded, or its folder; None: windows have no captions.
        embeddings: of the scene's windows, or the file that ``embed_scene`` wrote; None: made on first need, and kept.
        out: folder of what is exported.
        training: image id -> path of the captioner's training images, whose pictures are shown beside a window.
        results: hits of a search.
        sizes, overlap: of the windows, as ``embed_scene`` takes them.
        bands, stretch: as ``open_scene`` takes them.
        examples: searches offered at first.
        tier: what holds the windows of an archive, one of ``rsvlm.models.tiers.TIERS``.

    A scene that cannot be opened is told of in the panel.

    Raises:
        ValueError: ``results`` is out of range, or there is no such tier.
    """

    def __init__(
        self,
        scene: Scene | SceneArchive | str | Path,
        encoder: DualEncoder | str | Path,
        captioner: Captioner | str | Path | None = None,
        embeddings: SceneEmbeddings | str | Path | None = None,
        *,
        out: str | Path = "scratch/scenes",
        training: Mapping[str, str] | None = None,
        results: int = 10,
        sizes: Sequence[int] = (256,),
        overlap: float = 0.5,
        bands: Sequence[int | str] | str | None = None,
        stretch: str | Sequence = "auto",
        examples: Sequence[str] = EXAMPLES,
        device: str = "cpu",
        tier: str = "exact",
    ) -> None:
        if not 1 <= results <= 100:
            raise ValueError(f"results is {results}: give 1 to 100")
        check_tier(tier)
        reading = {"bands": bands, "stretch": stretch}
        options = {"out": Path(out), "training": training or {}, "results": results, "sizes": tuple(sizes)}
        options |= {"reading": reading, "examples": examples}
        models = SceneModels(encoder, captioner, sizes=sizes, overlap=overlap, device=device, tier=tier)
        place = Box(layout=Layout(flex="3 1 26rem", min_width="min(100%, 18rem)", overflow="visible"))
        self.panel = ScenePanel(place, models, options)
        self.panel.layout = Layout(flex="2 1 21rem", min_width="min(100%, 18rem)")
        super().__init__(
            [place, self.panel],
            layout=Layout(flex_flow="row wrap", align_items="flex-start", width="100%", grid_gap="8px"),
        )
        self.add_class("rsvlm-scene-map")
        try:
            if isinstance(scene, str | Path) and _is_archive(Path(scene)):
                scene = open_archive(scene, missing="skip")
            if isinstance(scene, SceneArchive):
                self.panel.show_archive(scene)
            else:
                opened = scene if isinstance(scene, Scene) else open_scene(scene, **reading)
                if isinstance(embeddings, str | Path):
                    embeddings = load_scene_embeddings(embeddings)
                self.panel.show_scene(opened, embeddings)
        except TOLD as error:
            self.panel.show_trouble(str(error))

    def __repr__(self) -> str:
        """What a saved notebook shows in the widget's place."""
        return "SceneMap: run this cell and those above to see it; a saved notebook keeps no widget."

    @property
    def scene(self) -> Scene | None:
        """The scene on the map."""
        return self.panel.scene

    @property
    def map(self) -> ipyleaflet.Map | None:
        """The map as it is now; own layers and controls may be added."""
        return self.panel.map

    @property
    def surface(self) -> Surface | None:
        """Of the last search."""
        return self.panel.surface

    @property
    def hits(self) -> "geopandas.GeoDataFrame | None":
        """Of the last search, best first."""
        return self.panel.hits


def _find_place(study: StudyFiles, place: str) -> str:
    """The place as a path that is there."""
    path = Path(place).expanduser()
    for found in (path, study.root / path):
        if found.exists():
            return str(found)
    looked = f"in {Path.cwd()} or in {study.root}" if Path.cwd() != study.root else f"in {study.root}"
    raise FileNotFoundError(f"{place}: no such file or folder {looked if not path.is_absolute() else 'here'}")


def open_place(
    study: StudyFiles, place: str, *, bands: str = "", stretch: str | Sequence[float] = "auto"
) -> tuple[SceneArchive | None, Scene]:
    """The archive, where ``place`` is one, and the scene to begin with: the archive's first, or the file itself.

    Args:
        place: a file, a folder of scenes or a STAC document, from the working directory (in JupyterLab the notebook's
            folder) or else from the study's root; empty: the study's globe, Blue Marble.
        bands: a preset's name, or numbers or names with commas: "4,3,2"; empty: what the file says.
        stretch: as ``open_scene`` takes it.

    Raises:
        FileNotFoundError, SceneError: as ``open_scene`` and ``open_archive``.
    """
    reading = {"bands": read_bands(bands), "stretch": stretch}
    if not place:
        globe = study.earth / "blue_marble.tif"  # the stage search_earth makes it
        return None, open_scene(
            globe if globe.is_file() else make_globe(cache_folder() / "scenes" / globe.name), **reading
        )
    place = _find_place(study, place)
    if not _is_archive(Path(place)):
        return None, open_scene(place, **reading)
    archive = open_archive(place, missing="skip")
    if not len(archive):
        raise SceneError(
            f"{place}: none of its scenes can be used: " + "; ".join(f"{n} ({why})" for n, why in archive.skipped)
        )
    return archive, archive.open(archive.scenes["scene"].iat[0], **reading)


def training_pictures(study: StudyFiles) -> dict[str, str]:
    """image id -> path of a study's training images; nothing where it has no image table yet."""
    if not study.table.is_file():
        return {}
    rows = study.read_table(["image_id", "path"], "train")
    return dict(zip(rows["image_id"], rows["path"], strict=True))


def read_bands(text: str) -> list[int | str] | str | None:
    """Bands as ``open_scene`` takes them: "" none, "4,3,2" or "B04, B03, B02" a list, else a preset's name."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) == 1 and not parts[0].isdigit():
        return parts[0]
    return [int(part) if part.isdigit() else part for part in parts] or None


def window_embeddings(
    study: StudyFiles, scene: Scene, encoder: DualEncoder, *, size: int, overlap: float
) -> SceneEmbeddings:
    """The embeddings of a scene's windows: those of the study's globe where they are meant, else made and kept."""
    made = study.earth / "windows.parquet"
    if made.is_file():
        found = load_scene_embeddings(made)
        own = found.meta["encoder_fingerprint"], found.meta["scene"]["fingerprint"], list(found.meta["sizes"])
        if own == (encoder.fingerprint(), scene.fingerprint, [size]):
            return found
    return SceneModels(encoder, None, sizes=(size,), overlap=overlap, device="cpu").embed(scene)


def _is_archive(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in (".json", ".geojson")
