"""The models behind a map of scenes: loaded when they are first needed, and what they say of windows."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import numpy as np
import shapely
from PIL import Image
from rasterio import Affine

from rsvlm.data.rasters.scene import Picture, Scene
from rsvlm.data.rasters.windows import Window
from rsvlm.files import cache_folder, fingerprint_values
from rsvlm.kernels import similarity_topk
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.features import encode_pictures
from rsvlm.models.inference import Captioner, caption, load_captioner
from rsvlm.models.loading import choose_device
from rsvlm.models.zoo import load_encoder
from rsvlm.progress import progress_told_to
from rsvlm.scenes.archive import SceneArchive
from rsvlm.scenes.archive_embedding import embed_archive
from rsvlm.scenes.captioning import caption_scene
from rsvlm.scenes.embedding import embed_scene
from rsvlm.scenes.window_files import SceneEmbeddings, load_scene_embeddings
from rsvlm.viewing.page import ThumbnailCache
from rsvlm.viewing.scene_pictures import fit, windows_of

NEIGHBOURS = 4  # nearest training images shown


class ScenePart:
    """A window of a scene as a scene of its own, as far as captioning needs one."""

    def __init__(self, scene: Scene, window: Window) -> None:
        self.scene, self.window = scene, window
        self.path, self.name, self.crs = scene.path, scene.name, scene.crs
        self.width, self.height = window.width, window.height
        self.transform = scene.transform and scene.transform @ Affine.translation(window.left, window.top)

    def _whole(self, window: Window) -> Window:
        return Window(self.window.left + window.left, self.window.top + window.top, window.width, window.height)

    def read(self, window: Window | None = None, size: tuple[int, int] | None = None) -> Picture:
        """As ``Scene.read``."""
        return self.scene.read(self._whole(window or Window(0, 0, self.width, self.height)), size)

    def overview(self, side: int = 1024) -> Picture:
        """As ``Scene.overview``."""
        return self.read(size=fit(self.width, self.height, side))

    def polygon(self, window: Window) -> shapely.Polygon:
        """As ``Scene.polygon``, in its place in the whole scene."""
        return self.scene.polygon(self._whole(window))


class SceneModels:
    """The encoder and the captioner of a map."""

    def __init__(
        self,
        encoder: DualEncoder | str | Path,
        captioner: Captioner | str | Path | None,
        *,
        sizes: Sequence[int],
        overlap: float,
        device: str,
        tier: str = "exact",
    ) -> None:
        self._encoder, self._captioner, self.device, self.tier = encoder, captioner, device, tier
        self.how = {"sizes": tuple(sizes), "overlap": overlap}
        self.embedded: SceneArchive | None = None

    @property
    def has_captioner(self) -> bool:
        """Whether one was given."""
        return self._captioner is not None

    @cached_property
    def encoder(self) -> DualEncoder:
        """The dual encoder; the captioner's own where only that was given."""
        if isinstance(self._encoder, DualEncoder):
            return self._encoder.eval()
        return load_encoder(str(self._encoder), choose_device(self.device)).eval()

    @cached_property
    def captioner(self) -> Captioner:
        """The captioner, with the encoder that it was trained with."""
        if isinstance(self._captioner, Captioner):
            return self._captioner
        return load_captioner(self._captioner, self.encoder, device=self.device)

    def embed(self, scene: Scene, tell: Callable[[str, int, int | None], None] | None = None) -> SceneEmbeddings:
        """The embeddings of a scene's windows, kept in ``cache_folder()``; ``tell`` takes the place of a bar."""
        key = fingerprint_values(scene.fingerprint, self.encoder.fingerprint(), self.how)[:20]
        with progress_told_to(tell) if tell else nullcontext():
            path = cache_folder() / "scenes" / f"{key}.parquet"
            return embed_scene(self.encoder, scene, path, log=lambda _: None, **self.how)

    def embed_archive(
        self,
        archive: SceneArchive,
        reading: Mapping[str, object],
        tell: Callable[[str, int, int | None], None],
        log: Callable[[str], None],
    ) -> None:
        """Embed the scenes of an archive that are not embedded yet, into ``cache_folder()``; ``embedded`` has them."""
        names = set(archive.scenes["scene"])
        if self.embedded is not None and names <= set(self.embedded.scenes["scene"]):
            return
        key = fingerprint_values(str(Path(archive.place).absolute()), self.encoder.fingerprint(), self.how, reading)[
            :20
        ]
        with progress_told_to(tell):
            self.embedded = embed_archive(
                self.encoder,
                archive,
                cache_folder() / "scenes" / key,
                unreadable="keep",
                tier=self.tier,
                log=log,
                **reading,
                **self.how,
            )

    def kept(self, scene: str) -> SceneEmbeddings | None:
        """The embeddings of a scene of the archive that was searched last."""
        rows = self.embedded.scenes[self.embedded.scenes["scene"] == scene] if self.embedded is not None else ()
        return load_scene_embeddings(Path(self.embedded.place) / rows["file"].iat[0]) if len(rows) else None

    def encode(self, scene: Scene, window: Window) -> np.ndarray:
        """(D,) float32, of length 1, of a window of a scene."""
        return encode_pictures(self.encoder, [_look(scene, window)], ["window"], grid=0).image_embeddings[0]

    def nearest(self, vector: np.ndarray, pictures: Mapping[str, str]) -> list[dict]:
        """``{"id", "captions", "score", "picture"}`` of the training images nearest to a vector.

        Args:
            pictures: image id -> path; those without one are shown by their captions alone.
        """
        memory = self.captioner.memory
        scores, rows = similarity_topk(vector[None], memory.vectors, min(NEIGHBOURS, len(memory.vectors)))
        names = list(memory.captions)
        found = [(names[row], float(score)) for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)]
        near = []
        for name, score in found:
            picture = None
            try:
                if name in pictures:
                    picture = ThumbnailCache().make([pictures[name]])[pictures[name]]
            except (OSError, ValueError):  # shown without: its captions say enough
                pass
            captions = list(dict.fromkeys(memory.captions[name]))
            near.append({"id": name, "captions": captions, "score": round(score, 4), "picture": picture})
        return near

    def caption(self, scene: Scene, window: Window) -> dict:
        """``{"text", "warning"}``: what the captioner says of a window."""
        row = caption(self.captioner, [_look(scene, window)]).iloc[0]
        return {"text": row["caption"], "warning": self.captioner.warning(row["distance"]), "parts": []}

    def caption_parts(self, part: ScenePart, size: int) -> dict:
        """The same of a large part of a scene, by windows of ``size`` pixels, with the sentences and their windows."""
        said = caption_scene(self.captioner, part, size=size)
        windows = [
            Window(part.window.left + own.left, part.window.top + own.top, own.width, own.height)._asdict()
            for own in windows_of(said.windows)
        ]
        sentences = zip(said.sentences["sentence"], said.sentences["windows"], strict=True)
        parts = [{"text": text, "windows": [windows[number] for number in numbers]} for text, numbers in sentences]
        return {"text": said.overview, "warning": said.warning, "parts": parts}


def _look(scene: Scene, window: Window, side: int = 1024) -> Image.Image:
    """A window's picture, at most ``side`` pixels."""
    return Image.fromarray(scene.read(window, fit(window.width, window.height, side)).pixels)
