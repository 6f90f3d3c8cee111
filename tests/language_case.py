"""A small world of images and captions in three languages, and a tower that reads them, for tests of search by language.

Each image shows one of eight things. The encoder is a tiny CLIP; the tower knows a code word for each thing in each
language, with a language's own offset, as real towers have.
"""

import hashlib

import numpy as np
import pandas as pd

from rsvlm.models.features import Features
from rsvlm.models.multilingual import Reading, TextTower

LANGUAGES = ("en", "pt", "de")
WORDS = {
    "en": ["river", "forest", "desert", "harbour", "airport", "meadow", "beach", "stadium"],
    "pt": ["rio", "floresta", "deserto", "porto", "aeroporto", "prado", "praia", "estádio"],
    "de": ["Fluss", "Wald", "Wüste", "Hafen", "Flughafen", "Wiese", "Strand", "Stadion"],
}
SAYS = {
    "en": ["There is a {}.", "The picture shows a {}."],
    "pt": ["Há um {} aqui.", "A imagem mostra: {}."],
    "de": ["Hier ist {}.", "Das Bild zeigt {}."],
}
DIM = 16


class CodeTower(TextTower):
    """Texts by the word that they hold."""

    name, dim, languages = "tests:codes", 24, ("en", "pt", "de", "fr")

    def embed(self, texts):
        return np.stack([self._vector(text) for text in texts]) if len(texts) else np.zeros((0, self.dim), np.float32)

    def read(self, text):
        words = text.split()
        unknown = sum(any("\u13a0" <= letter <= "\u13ff" for letter in word) for word in words) / len(words)
        return Reading(min(len(words), 50), max(0, len(words) - 50), unknown)

    def fingerprint(self):
        return "codes"

    def _vector(self, text):
        vector = np.zeros(self.dim, np.float32)
        for offset, language in enumerate(LANGUAGES):
            for thing, word in enumerate(WORDS[language]):
                if word in text.replace(".", "").replace(":", "").split():
                    vector[thing] = 1
                    vector[8 + offset] = 0.5
        noise = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        vector += 0.1 * np.random.default_rng(noise).normal(size=self.dim).astype(np.float32)
        return vector / np.linalg.norm(vector)


def make_world(images: int = 64):
    """(caption table, translations, features): images 0, 8, 16, ... show the first thing, and so on."""
    generator = np.random.default_rng(0)
    centres = np.linalg.qr(generator.normal(size=(DIM, DIM)))[0][:8]
    rows, translated = [], []
    for number in range(images):
        thing, image_id = number % 8, f"s/{number:03d}.png"
        split = "train" if number < images // 2 else "val" if number < 3 * images // 4 else "test"
        captions = {code: [says.format(WORDS[code][thing]) for says in SAYS[code]] for code in LANGUAGES}
        rows.append({"image_id": image_id, "source": "s", "split": split, "captions": captions["en"]})
        for code in LANGUAGES[1:]:
            translated.append({"image_id": image_id, "language": code, "captions": captions[code], "how": "machine"})
    table = pd.DataFrame(rows)
    vectors = centres[np.arange(images) % 8] + 0.15 * generator.normal(size=(images, DIM))
    texts = sorted({caption for own in table["captions"] for caption in own})
    things = [next(place for place, word in enumerate(WORDS["en"]) if word in text) for text in texts]
    teacher = centres[things] + 0.05 * generator.normal(size=(len(texts), DIM))
    units = [(part / np.linalg.norm(part, axis=1, keepdims=True)).astype(np.float32) for part in (vectors, teacher)]
    meta = {"encoder_fingerprint": "world", "capitalise": True, "precision": "fp32"}
    pooled = np.zeros((images, 1, 1), np.float16)
    features = Features(pooled, None, units[0], units[1], texts, list(table["image_id"]), meta)
    return table, pd.DataFrame(translated), features
