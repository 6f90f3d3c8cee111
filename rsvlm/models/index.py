"""An index of images that can be searched by text or by image.

Where its vectors lie is its tier, ``rsvlm.models.tiers``. A saved folder holds ``config.json`` (the tier, the encoder and how
texts are encoded) and what the tier keeps: the exact one ``vectors.npy`` (N, D) float16, ``images.json`` and, where something is
known of the images, ``facts.parquet``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from rsvlm.files import read_json, write_json
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.encoding import encode_texts
from rsvlm.models.faiss_tier import MEMORY, FaissTier
from rsvlm.models.features import encode_pictures
from rsvlm.models.image_filters import Facts, Where, facts_about, facts_of
from rsvlm.models.lance_tier import LanceTier
from rsvlm.models.pictures import Picture, list_images, read_blocks, read_picture
from rsvlm.models.queries import Without, encode_parts, unit_vector
from rsvlm.models.tier_folders import read_tier
from rsvlm.models.tiers import CONFIG, DAMAGED, RECALL, ExactTier, Tier, check_tier
from rsvlm.models.zoo import find_encoder
from rsvlm.progress import log_line
from rsvlm.safe_text import check_query

UNFINISHED = "unfinished.json"  # the CONFIG of an index that is being made


class Translating(Protocol):
    """What encodes texts of any language into an encoder's space: ``rsvlm.load_languages``."""

    encoder: DualEncoder

    def embed(self, texts: list[str], language: str | None = None) -> np.ndarray:
        """(N, D) float32 of length 1; a language of None is detected."""


@dataclass(frozen=True)
class ImageIndex:
    """Images by their embeddings.

    Attributes:
        tier: holds their names, vectors and what is known of them.
        encoder: what made them, and what encodes queries.
        capitalise: texts are encoded as ``text.capitalize()``, RemoteCLIP's protocol.
        views: of an image, whose mean is its vector (1: upright only).
        languages: what encodes queries that are not English; None: English alone.

    Raises:
        ValueError: the languages are those of another encoder.
    """

    tier: Tier
    encoder: DualEncoder
    capitalise: bool = True
    views: int = 1
    languages: Translating | None = None

    def __post_init__(self) -> None:
        own = self.languages and self.languages.encoder
        if own and own is not self.encoder and own.fingerprint() != self.encoder.fingerprint():
            raise ValueError(f"languages: made for another encoder ({own.name}) than the index ({self.encoder.name})")

    def __len__(self) -> int:
        return len(self.tier)

    def search(
        self,
        query: Picture | Without | list[Picture | Without],
        k: int = 10,
        language: str = "en",
        where: Where | None = None,
    ) -> pd.DataFrame:
        """The k nearest images to a text, an image (a Path, a PIL image or an array) or a vector (D,), best first.

        Args:
            query: a string is a text, an array of one axis a vector of the encoder's space; ``Without("farmland", "houses")``
                leaves out, which "farmland without houses" does not; a list asks several at once.
            language: of the texts, such as "pt"; "any" detects the language of each. English alone needs no ``languages``.
            where: which images may be found, ``Where(source="ucm", bbox=(-10, 35, 0, 45))``; decided before the search.

        Returns:
            Columns ``query`` (number, from 0), ``rank`` (from 1), ``image``, ``score`` (cosine).

        Raises:
            ValueError: k below 1, a text as ``check_query``, a language that cannot be read, ``where`` asks for what is known
                of no image, or a file of the tier is damaged.
        """
        queries = query if isinstance(query, list) else [query]
        if k < 1:
            raise ValueError(f"k = {k}: expected at least 1")
        vectors = encode_parts(queries, lambda plain: self._encode(plain, language))
        rows = [
            {"query": number, "rank": rank, "image": name, "score": round(score, 6)}
            for number, found in enumerate(self.tier.search(vectors, k, where))
            for rank, (name, score) in enumerate(found, start=1)
        ]
        return pd.DataFrame(rows, columns=["query", "rank", "image", "score"])

    def add(
        self,
        images: Picture | Iterable[Picture],
        *,
        facts: Facts | None = None,
        precision: str = "fp32",
        batch_size: int = 32,
        unreadable: str = "raise",
    ) -> int:
        """Encode more images as ``build_index`` does, and how many they were; one that is there already is replaced.

        An index that was loaded or saved follows in its folder; what ``tier`` took block by block stays where a later image fails.
        """
        listed = list_images(images)
        facts = facts_about([name for name, _ in listed], facts)
        return self._add([image for _, image in listed], facts, precision, batch_size, unreadable)

    def _add(
        self,
        images: Iterable[Picture],
        facts: pd.DataFrame | None,
        precision: str,
        batch_size: int,
        unreadable: str,
    ) -> int:
        names, parts = [], []
        for block in read_blocks(images, unreadable):
            for _, why in block.troubles.values():
                log_line(f"left out: {why}")
            features = encode_pictures(
                self.encoder, block.pictures, block.names, views=self.views, precision=precision, batch_size=batch_size
            )
            names += block.names
            parts.append(features.image_embeddings.astype(np.float16))
            if self.tier.by_blocks:
                self.tier.add(block.names, parts.pop(), facts_of(block.names, facts))
        if parts:
            self.tier.add(names, np.concatenate(parts), facts_of(names, facts))
        return len(names)

    def remove(self, images: Iterable[str]) -> None:
        """Take images out, by the names that a search gives. ValueError names one that is not there; then none is taken."""
        self.tier.remove(list(images))

    def compact(self) -> None:
        """Give back the room of what was removed, and index what was added; see the tier."""
        self.tier.compact()

    def save(self, folder: str | Path) -> None:
        """Write an index of the tier ``exact``, whole or not at all; ``load_index`` reads it. The others have their folder."""
        folder = Path(folder)
        if not isinstance(self.tier, ExactTier):
            raise ValueError(f"{folder}: an index of the tier {self.tier.kind} lies in its own folder; copy that")
        check_free(folder)
        self.tier.save(folder, self._config())

    def _config(self) -> dict:
        name = self.encoder.name
        name = str(Path(name).resolve()) if Path(name).is_dir() else name
        config = {"encoder": name, "encoder_fingerprint": self.encoder.fingerprint(), "tier": self.tier.kind}
        return config | {"capitalise": self.capitalise, "views": self.views}

    def _encode(self, queries: list[Picture], language: str) -> np.ndarray:
        vectors = np.zeros((len(queries), self.encoder.embedding_dim), np.float32)
        texts = [place for place, query in enumerate(queries) if isinstance(query, str)]
        for place in texts:
            check_query(queries[place], f"query {place}")
        if texts:
            vectors[texts] = self._encode_texts([queries[place] for place in texts], language)
        made = [place for place, query in enumerate(queries) if isinstance(query, np.ndarray) and query.ndim == 1]
        for place in made:
            vectors[place] = unit_vector(queries[place], self.encoder.embedding_dim)
        others = [place for place in range(len(queries)) if place not in {*texts, *made}]
        if others:
            pictures = [read_picture(queries[place]) for place in others]
            vectors[others] = encode_pictures(
                self.encoder, pictures, list(map(str, others)), views=self.views
            ).image_embeddings
        return vectors

    def _encode_texts(self, texts: list[str], language: str) -> np.ndarray:
        """(N, D) float32 of length 1."""
        if language != "en":
            if self.languages is None:
                raise ValueError(
                    f"language {language!r}: this index reads English alone; give it languages="
                    "rsvlm.load_languages('models/languages', encoder)"
                )
            return self.languages.embed(texts, None if language == "any" else language)
        return encode_texts(self.encoder, texts, capitalise=self.capitalise)


def build_index(
    encoder: DualEncoder,
    images: Picture | Iterable[Picture],
    *,
    tier: str = "exact",
    folder: str | Path | None = None,
    facts: Facts | None = None,
    memory: int = MEMORY,
    recall: float = RECALL,
    views: int = 1,
    capitalise: bool = True,
    precision: str = "fp32",
    batch_size: int = 32,
    unreadable: str = "raise",
    languages: Translating | None = None,
) -> ImageIndex:
    """An index of images.

    Args:
        images: paths, folders, PIL images or arrays, as ``caption`` takes them.
        tier: one of ``rsvlm.models.tiers.TIERS``; all but ``exact`` need ``folder``.
        folder: where the index is kept; it follows each change. What a killed call of the tier ``lancedb`` had taken stays, and
            the next call goes on there.
        facts: what is known of images, a table or its file, see ``rsvlm.models.image_filters.read_facts``.
        memory: bytes that the tier ``faiss`` may take for its index.
        recall: share of the nearest that an approximate tier is to find, 0 to 1.
        views, precision: as ``rsvlm.models.feature_shards.encode_images`` takes them.
        unreadable: "raise" stops at a file that is no whole image; "keep" goes on, says so and leaves it out.
        languages: for queries that are not English, see ``rsvlm.load_languages``.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without an image.
        ImageError: a file that cannot be read as an image; names it.
        ModuleNotFoundError: the tier's package is not installed.
        ValueError: an unknown tier, no folder, or one that holds something else, a recall that is no share,
            facts of none of the images, or too little memory.
    """
    check_tier(tier)
    if not 0 < recall <= 1:
        raise ValueError(f"recall: a share above 0, at most 1, is needed; is {recall}")
    if tier != "exact":
        if folder is None:
            raise ValueError(f"folder: the tier {tier} needs one")
        folder = _begin(Path(folder), tier)
    elif folder is not None:
        check_free(Path(folder))
    listed = list_images(images)
    facts = facts_about([name for name, _ in listed], facts)
    options = {"facts": facts, "precision": precision, "batch_size": batch_size, "unreadable": unreadable}
    if tier != "lancedb":
        empty = ExactTier([], np.zeros((0, encoder.embedding_dim), np.float16))
        index = ImageIndex(empty, encoder, capitalise, views, languages)
        index._add([image for _, image in listed], **options)
        if tier == "faiss":
            held, config = index.tier, index._config()
            blocks = [(held.names, held.vectors, held.facts)]
            made = FaissTier.make(folder, encoder.embedding_dim, len(held), blocks, config, memory, recall)
            return ImageIndex(made, encoder, capitalise, views, languages)
        if folder is not None:
            index.save(folder)
        return index
    index = ImageIndex(LanceTier(folder, encoder.embedding_dim, recall), encoder, capitalise, views, languages)
    config = index._config()
    if (folder / UNFINISHED).is_file() and (begun := read_json(folder / UNFINISHED)) != config:
        raise ValueError(
            f"{folder}: an index was begun here with other settings ({begun}); remove the folder, or give another"
        )
    write_json(folder / UNFINISHED, config)
    there = index.tier.there([name for name, image in listed if isinstance(image, Path)])
    if there:
        log_line(f"{len(there)} of {len(listed)} images are in {folder} already; it goes on with the others")
    index._add([image for name, image in listed if name not in there], **options)
    index.compact()
    write_json(folder / CONFIG, config)
    (folder / UNFINISHED).unlink()
    return index


def check_free(folder: Path, tier: str = ExactTier.kind) -> None:
    """ValueError where an index of a tier cannot be made in a folder without losing what it holds.

    An index of the tier ``exact`` takes the place of another one; one of ``lancedb`` that was begun is gone on with.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    begun = (folder / UNFINISHED).is_file()
    if begun and tier == LanceTier.kind:
        return
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if not begun and (not isinstance(config, dict) or "encoder_fingerprint" not in config):
        raise ValueError(f"{folder}: is there already and holds no index; give another folder")
    if begun or (tier == ExactTier.kind and config.get("tier", tier) != tier):
        raise ValueError(f"{folder}: holds an index of another tier; remove the folder, or give another")
    if tier != ExactTier.kind:
        raise ValueError(f"{folder}: holds an index already; `rsvlm index add` adds to it, or remove the folder first")


def _begin(folder: Path, tier: str) -> Path:
    """A folder where an index can be begun or gone on with."""
    check_free(folder, tier)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load_index(
    folder: str | Path,
    encoder: DualEncoder | str | Path | None = None,
    *,
    device: str = "cpu",
    languages: Translating | None = None,
) -> ImageIndex:
    """A saved index.

    Args:
        encoder: what made it, loaded or by name; None: by the name that was saved, or that of ``languages``.
        languages: for queries that are not English, see ``rsvlm.load_languages``.

    Raises:
        FileNotFoundError: no index there.
        ModuleNotFoundError: its tier's package is not installed.
        ValueError: a damaged file, one that was not finished, or another encoder.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        if (folder / UNFINISHED).is_file():
            raise ValueError(f"{folder}: this index was not finished; the same `rsvlm embed` goes on with it")
        raise FileNotFoundError(f"{folder}: no index here ({CONFIG} is missing); `rsvlm embed` makes one")
    config = read_json(folder / CONFIG)
    try:
        name, wanted, capitalise, views = (
            config[key] for key in ("encoder", "encoder_fingerprint", "capitalise", "views")
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: the index is damaged ({error}); {DAMAGED}") from error
    encoder = find_encoder(
        folder, encoder or (languages.encoder if languages else None), wanted, device, made_with=name
    )
    return ImageIndex(read_tier(folder, encoder.embedding_dim), encoder, capitalise, views, languages)
