"""What is odd about a source's captions and counts: its words, misspelt ones, numbers that are not as published."""

import re
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files

from rsvlm.data.catalogue import KNOWN
from rsvlm.data.listings import Listing
from rsvlm.data.table import SPLITS
from rsvlm.extras import import_extra

WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
MISSPELT_SHOWN = 30


def caption_facts(captions: list[str]) -> dict:
    """Numbers on a source's captions: distinct ones, their words, the vocabulary, words that occur once."""
    words = Counter(word for caption in captions for word in words_of(caption))
    lengths = sorted(len(caption.split()) for caption in captions)
    return {
        "distinct_captions": len(set(captions)),
        "words": sum(words.values()),
        "vocabulary": len(words),
        "words_that_occur_once": sum(count == 1 for count in words.values()),
        "words_a_caption": {
            "least": lengths[0],
            "median": lengths[len(lengths) // 2],
            "most": lengths[-1],
        }
        if lengths
        else {},
    }


def words_of(caption: str) -> list[str]:
    """The words of a caption, lower case, without digits and punctuation."""
    return WORD.findall(caption.lower())


def published_counts(name: str, listing: Listing) -> list[dict]:
    """Each published count beside the file's: rows with what, published, found. Empty for an unknown source."""
    known = KNOWN.get(name)
    if known is None:
        return []
    rows = []
    if known.images is not None:
        rows.append({"what": "images", "published": known.images, "found": len(listing.images)})
    if known.captions is not None:
        rows.append({"what": "captions", "published": known.captions, "found": listing.counts["captions_listed"]})
    read = listing.notes["splits_read"]
    for split in SPLITS:
        if split in known.splits:
            rows.append({"what": f"{split} images", "published": known.splits[split], "found": read.get(split, 0)})
    return rows


def english_dictionary(otherwise: str = "set check_spelling to false") -> object:
    """A SpellChecker that knows American and British spellings.

    Raises:
        ModuleNotFoundError: pyspellchecker is missing; says how to install it or how to go on without (``otherwise``).
    """
    speller = import_extra("spellchecker", "the spelling check", otherwise).SpellChecker(language="en", distance=1)
    lines = (files("rsvlm.data") / "british_spellings.txt").read_text(encoding="utf-8").splitlines()
    speller.word_frequency.load_words([line for line in lines if not line.startswith("#")])
    return speller


def find_misspelt(captions: Iterable[str]) -> dict:
    """Words that an English dictionary does not know: how many kinds, how often, and the most frequent with a guess.

    American and British spellings are both known. The guess is the captions' own most frequent word one letter away,
    else the dictionary's. Some candidates are real words that the dictionary lacks; a person has to look.

    Raises:
        ModuleNotFoundError: pyspellchecker is missing.
    """
    speller = english_dictionary()
    counts = Counter(word for caption in captions for word in words_of(caption))
    parts = {word: [part for part in re.split(r"['-]", word) if len(part) > 2] for word in counts}
    unknown = {word for word, pieces in parts.items() if speller.unknown([word]) and speller.unknown(pieces)}
    rows = []
    for word in sorted(unknown, key=lambda word: (-counts[word], word)):
        guesses = speller.candidates(word) or set()
        own = [guess for guess in guesses if guess != word and counts[guess] > counts[word]]
        guess = max(own, key=lambda g: (counts[g], g)) if own else speller.correction(word)
        rows.append({"word": word, "times": counts[word], "perhaps": guess if guess != word else None})
    return {
        "words": len(rows),
        "times": sum(row["times"] for row in rows),
        "words_with_a_guess": sum(row["perhaps"] is not None for row in rows),
        "most_frequent": rows[:MISSPELT_SHOWN],
    }
