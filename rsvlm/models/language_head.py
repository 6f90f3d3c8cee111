"""Search in any language: a head from a multilingual text tower's space into an encoder's, and what is asked of it.

A folder ``models/languages`` holds ``model.safetensors`` (the head), ``config.json`` (its shape, the tower, both fingerprints,
the languages) and ``words.json`` (the words of the English captions that it was trained on).

English goes through the encoder's own text tower, as it does without a head.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from rsvlm.data.caption_languages import ENGLISH
from rsvlm.files import read_json, whole_folder, write_json
from rsvlm.languages import detect_language, language_name, normal_text, other_language
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.encoding import encode_texts
from rsvlm.models.loading import load_strictly, read_weights
from rsvlm.models.multilingual import TextTower, load_text_tower
from rsvlm.models.zoo import find_encoder

FOLDER, CONFIG, WEIGHTS, WORDS = "languages", "config.json", "model.safetensors", "words.json"
KEYS = ("tower", "prefix", "tower_fingerprint", "encoder_fingerprint", "capitalise", "languages", "recipe", "recipes",
        "tower_dim", "embedding_dim", "hidden")  # fmt: skip
REMEDY = "run the stage add_languages again"
MOST_UNKNOWN = 0.25  # share of tokens that the tower has no piece for, from which a text means nothing to it


class LanguageHead(nn.Module):
    """A linear map beside a small network, from (B, tower_dim) to (B, embedding_dim), of length 1.

    The network's last layer starts at zero, so that training starts from the linear map.
    """

    def __init__(self, tower_dim: int, embedding_dim: int, hidden: int):
        super().__init__()
        self.linear = nn.Linear(tower_dim, embedding_dim)
        self.widen = nn.Linear(tower_dim, hidden)
        self.narrow = nn.Linear(hidden, embedding_dim, bias=False)
        nn.init.zeros_(self.narrow.weight)

    @property
    def shape(self) -> dict[str, int]:
        """What it is built from."""
        return {
            "tower_dim": self.linear.in_features,
            "embedding_dim": self.linear.out_features,
            "hidden": self.widen.out_features,
        }

    def forward(self, texts: Tensor) -> Tensor:
        return F.normalize(self.linear(texts) + self.narrow(F.gelu(self.widen(texts))), dim=-1)


def project(head: LanguageHead, texts: np.ndarray) -> np.ndarray:
    """(N, embedding_dim) float32 of length 1, of a tower's embeddings (N, tower_dim)."""
    with torch.no_grad():
        return head.eval()(torch.from_numpy(np.ascontiguousarray(texts))).numpy()


@dataclass(frozen=True)
class Asked:
    """A text as it is asked: its language, None where it could not be told, and what is to be said about it."""

    text: str
    language: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Languages:
    """What encodes texts of several languages into an encoder's space.

    Attributes:
        encoder: whose space it is; it encodes English itself.
        tower, head: of all other languages.
        trained: codes of the languages that the head was trained on, "en" among them.
        words: of English captions, small letters: a text made of these alone is English.
        capitalise: English is encoded as ``text.capitalize()``.
        about: the recipe of the head, and which there were.
    """

    encoder: DualEncoder
    tower: TextTower
    head: LanguageHead
    trained: tuple[str, ...]
    words: frozenset[str] = frozenset()
    capitalise: bool = True
    about: Mapping[str, object] = field(default_factory=dict)

    @property
    def known(self) -> tuple[str, ...]:
        """The codes that may be asked in: those that were trained, and those that the tower's authors name."""
        return tuple(sorted({*self.trained, *self.tower.languages, ENGLISH}))

    def ask(self, text: str, language: str | None = None) -> Asked:
        """The text with its language, and with what is to be said: what is left out, what was not trained, what is unknown.

        Args:
            language: its code; None detects it.

        Raises:
            ValueError: a blank text, a language that neither the head nor the tower knows, given or detected, or a text
                whose letters the tower does not know; says what to do.
            ModuleNotFoundError: detection needs a package that is missing.
        """
        text = normal_text(text)
        if not text:
            raise ValueError("a blank text: describe what you look for")
        if language is None:
            language = self._detect(text)
        elif language not in self.known:
            raise ValueError(
                f"language {language!r}: not known to {self.tower.name}, which reads {', '.join(self.known)}; ask in one of "
                "these"
            )
        notes = []
        if language == ENGLISH:
            return Asked(text, language)
        reading = self.tower.read(text)
        if reading.unknown > MOST_UNKNOWN:
            raise ValueError(
                f"{100 * reading.unknown:.0f} % of the text is in letters that {self.tower.name} does not know: ask in one of "
                f"{', '.join(self.known)}"
            )
        if reading.left_out:
            notes.append(f"only the first {reading.tokens} of {reading.tokens + reading.left_out} tokens are read")
        if language is None:
            notes.append("its language could not be told, it is read as it stands; set the language to be sure")
        elif language not in self.trained:
            notes.append(f"nothing was trained in {language}: what it finds is less reliable")
        return Asked(text, language, tuple(notes))

    def embed(self, texts: Sequence[str], language: str | None = None) -> np.ndarray:
        """(N, D) float32 of length 1, in the encoder's space. What ``ask`` has to say is a warning.

        Args:
            language: code of all texts; None detects each.

        Raises:
            ValueError: as ``ask``.
        """
        asked = [self.ask(text, language) for text in texts]
        for number, one in enumerate(asked):
            for note in one.notes:
                warnings.warn(f"text {number} ({one.text[:40]!r}): {note}", stacklevel=2)
        return self.embed_asked(asked)

    def embed_asked(self, asked: Sequence[Asked]) -> np.ndarray:
        """(N, D) float32 of length 1 of texts whose language is settled."""
        vectors = np.zeros((len(asked), self.encoder.embedding_dim), np.float32)
        own = [row for row, one in enumerate(asked) if one.language == ENGLISH]
        other = [row for row, one in enumerate(asked) if one.language != ENGLISH]
        if own:
            vectors[own] = encode_texts(self.encoder, [asked[row].text for row in own], capitalise=self.capitalise)
        if other:
            vectors[other] = project(self.head, self.tower.embed([asked[row].text for row in other]))
        return vectors

    def _detect(self, text: str) -> str | None:
        spoken = words_of(text)
        if spoken and spoken <= self.words:
            return ENGLISH
        foreign = other_language(text, self.known)
        if foreign:
            raise ValueError(
                f"this looks like {language_name(foreign)}, which {self.tower.name} does not read: ask in one of "
                f"{', '.join(self.known)}, or set the language if it is one of these"
            )
        return detect_language(text, self.known)


def words_of(text: str) -> set[str]:
    """The words of a text in small letters: runs of letters."""
    return set("".join(letter if letter.isalpha() else " " for letter in text.lower()).split())


def save_languages(
    folder: Path,
    heads: Mapping[str, LanguageHead],
    kept: str | None,
    *,
    tower: TextTower | None,
    prefix: str,
    encoder_fingerprint: str,
    trained: Iterable[str],
    words: Iterable[str],
    capitalise: bool,
) -> None:
    """Write a folder of languages, whole or not at all: the kept head, and beside it one of each recipe.

    Args:
        heads: by recipe; none leaves the folder empty.
        kept: the recipe whose head is used.
        prefix: what the tower was loaded with.
    """
    with whole_folder(Path(folder)) as scratch:
        for recipe, head in heads.items():
            weights = {name: value.detach().contiguous() for name, value in sorted(head.state_dict().items())}
            save_file(weights, scratch / f"{recipe}.safetensors", metadata={"format": "pt"})
            if recipe == kept:
                save_file(weights, scratch / WEIGHTS, metadata={"format": "pt"})
        if not heads:
            return
        write_json(scratch / WORDS, sorted(words))
        config = {"tower": tower.name, "prefix": prefix, "tower_fingerprint": tower.fingerprint()}
        config |= {"encoder_fingerprint": encoder_fingerprint, "capitalise": capitalise, **heads[kept].shape}
        write_json(scratch / CONFIG, config | {"languages": sorted(trained), "recipes": sorted(heads), "recipe": kept})


def trained_languages(folder: str | Path) -> list[str]:
    """Codes of the languages beside English that a folder's head was trained on; none where a study has none."""
    return (
        [code for code in read_json(Path(folder) / CONFIG)["languages"] if code != ENGLISH]
        if has_languages(folder)
        else []
    )


def load_heads(folder: str | Path) -> tuple[TextTower | None, dict[str, LanguageHead]]:
    """The tower, and the head of each recipe that was trained, the kept one first; (None, {}) where a study has none.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: as ``load_languages``.
    """
    folder = Path(folder)
    if not has_languages(folder):
        return None, {}
    config = read_json(folder / CONFIG)
    recipes = sorted(config["recipes"], key=lambda name: name != config["recipe"])
    return _load_tower(folder, config), {
        recipe: _load_head(folder / f"{recipe}.safetensors", config) for recipe in recipes
    }


def _load_tower(folder: Path, config: Mapping[str, object]) -> TextTower:
    tower = load_text_tower(config["tower"], prefix=config["prefix"])
    if tower.fingerprint() != config["tower_fingerprint"]:
        raise ValueError(
            f"{folder}: trained on another {tower.name} than is installed here: {REMEDY}, or install that one"
        )
    return tower


def _load_head(path: Path, shape: Mapping[str, object]) -> LanguageHead:
    head = LanguageHead(*(shape[name] for name in ("tower_dim", "embedding_dim", "hidden")))
    load_strictly(head, read_weights(path, REMEDY), path, REMEDY)
    return head.eval()


def has_languages(folder: Path) -> bool:
    """Whether a folder holds a head; a study without languages leaves it empty."""
    return (Path(folder) / CONFIG).is_file()


def languages_beside(encoder: str | Path) -> Path | None:
    """The folder of languages beside an encoder's folder, as a study leaves them; None where there is none."""
    folder = Path(encoder).parent / FOLDER
    return folder if has_languages(folder) else None


def load_languages(folder: str | Path, encoder: DualEncoder | str | Path, *, device: str = "cpu") -> Languages:
    """What a study's stage ``add_languages`` left, ready to encode texts.

    Args:
        encoder: what the head was trained for, loaded or by name.

    Raises:
        FileNotFoundError: nothing there, or the tower is out of reach.
        ModuleNotFoundError: the tower's package is missing.
        ValueError: a damaged file, another encoder, or another tower than the head was trained on.
    """
    folder = Path(folder)
    if not has_languages(folder):
        raise FileNotFoundError(
            f"{folder}: no languages here ({CONFIG} is missing): give add_languages.languages in params.yaml and run "
            "`dvc repro add_languages`"
        )
    config = read_json(folder / CONFIG)
    lacking = sorted(set(KEYS) - set(config))
    if lacking:
        raise ValueError(f"{folder / CONFIG}: the key {lacking[0]!r} is missing: {REMEDY}")
    encoder = find_encoder(folder, encoder, config["encoder_fingerprint"], device)
    tower, head = _load_tower(folder, config), _load_head(folder / WEIGHTS, config)
    words = frozenset(read_json(folder / WORDS))
    about = {key: config[key] for key in ("recipe", "recipes")}
    return Languages(encoder, tower, head, tuple(config["languages"]), words, config["capitalise"], about)
