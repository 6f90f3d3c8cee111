"""What captions are like without references, and which classes they name that the image does not have.

What can be said of a run's captions without references: length, vocabulary, variety, copies from training.

Class names in captions, and those that the image does not have: hallucination after CHAIR (Rohrbach et al. 2018).

CHAIR knows what is in an image from its annotation and its reference captions. Here: a class is in the image when its
label says so or one of its references names it. A caption hallucinates when it names a class that is not.

The names are the classes of UC Merced, RSICD and NWPU-RESISC45 and the land groups of the Blue Marble captions, each
with the words by which captions call it. A word of a longer name is not counted again ("railway station" names no
railway), plurals count, and words that every second caption uses for something else ("field", "square", "line") do not.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rsvlm.scoring.bootstrap import rounded

ORDERS = (1, 2, 3)
PROTOCOL = (
    "words are PTB tokens; distinct_n: different n-grams over all n-grams of the run's captions (Li et al. 2016);"
    " copied: the share of captions that equal a training caption after tokenising"
)


def describe_texts(tokenized: Sequence[str], training: Collection[str]) -> dict[str, float | int | None]:
    """Lengths (words), vocabulary, different captions, distinct_1..3 and the share copied of tokenized captions.

    distinct_n is None where no caption has n words.

    Args:
        training: the training captions, tokenized.
    """
    words = [text.split() for text in tokenized]
    lengths = np.array([len(row) for row in words])
    described = {
        "mean_words": float(lengths.mean()),
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "vocabulary": len({word for row in words for word in row}),
        "distinct_captions": len(set(tokenized)),
    }
    for order in ORDERS:
        grams = Counter(tuple(row[at : at + order]) for row in words for at in range(len(row) - order + 1))
        described[f"distinct_{order}"] = len(grams) / grams.total() if grams else None
    described["copied"] = float(np.mean([text in training for text in tokenized]))
    return rounded(described)


# A class and the other names it goes by, in singular, as PTB tokens. The first is how it is called in a report.
CLASSES = (
    ("airplane", "plane", "aircraft", "jet"),
    ("airport", "terminal", "airfield"),
    ("runway",),
    ("baseball field", "baseball diamond", "baseball court"),
    ("basketball court", "basketball field"),
    ("tennis court",),
    ("football field", "soccer field", "football pitch", "soccer pitch"),
    ("ground track field", "playground", "running track", "track and field"),
    ("stadium", "gymnasium"),
    ("golf course", "golf"),
    ("beach",),
    ("sea", "ocean", "open sea", "sea water", "seawater"),
    ("island", "islet"),
    ("lake",),
    ("pond",),
    ("swimming pool",),
    ("river", "stream", "creek"),
    ("wetland", "marsh", "swamp"),
    ("bridge",),
    ("overpass", "viaduct", "flyover"),
    ("freeway", "highway", "motorway", "expressway"),
    ("intersection", "crossroad", "crossing"),
    ("roundabout", "traffic circle"),
    ("parking lot", "parking space", "car park", "parking area", "parking"),
    ("railway", "railroad", "rail track"),
    ("railway station", "train station"),
    ("harbor", "harbour", "port", "dock", "pier"),
    ("ship", "boat", "vessel", "yacht"),
    ("storage tank", "oil tank", "tank"),
    ("thermal power station", "power station", "power plant", "cooling tower"),
    ("industrial area", "factory", "industrial", "plant area"),
    ("commercial area", "commercial", "shopping mall"),
    ("residential area", "residential", "denseresidential", "mediumresidential", "sparseresidential", "house", "villa"),
    ("mobile home park", "mobile home"),
    ("school", "campus"),
    ("church", "cathedral"),
    ("palace",),
    ("park",),
    ("resort",),
    ("forest", "wood", "jungle"),
    ("woodland", "woody savanna"),
    ("farmland", "cropland", "agricultural", "farm", "crop", "terrace", "paddy"),
    ("meadow", "grassland", "steppe", "pasture"),
    ("shrubland", "chaparral", "scrub", "shrub", "bush"),
    ("savanna", "savannah"),
    ("desert",),
    ("bare land", "bareland", "barren land", "bare ground", "bare soil"),
    ("mountain", "hill", "ridge"),
    ("snow and ice", "snow", "ice", "snowberg", "glacier", "sea ice", "snow cover", "ice cover"),
    ("cloud",),
    ("built-up land", "city", "town", "urban area"),
)
LONGEST = 3  # words of a name
PROTOCOL_CLASS_NAMES = (
    "after CHAIR (Rohrbach et al. 2018), on the classes of rsvlm.scoring.texts: an image has a class when its"
    " label or one of its references names it; captions: share of captions that name another; names: share of the named"
    " classes that are others; interval over images"
)


@dataclass(frozen=True)
class NamedClasses:
    """How many classes each caption names, and how many of them its image does not have; (n,) each."""

    named: np.ndarray
    wrong: np.ndarray
    examples: dict[str, int]  # class -> how many captions name it wrongly


def class_names(text: str) -> set[str]:
    """The classes that a tokenized caption names."""
    words = text.lower().split()
    found, at = set(), 0
    while at < len(words):
        for length in range(min(LONGEST, len(words) - at), 0, -1):
            name = _NAMES.get(" ".join([*words[at : at + length - 1], _singular(words[at + length - 1])]))
            name = name or _NAMES.get(" ".join(words[at : at + length]))
            if name:
                found.add(name)
                at += length
                break
        else:
            at += 1
    return found


def hallucinated_classes(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], labels: Mapping[str, str | None]
) -> NamedClasses:
    """What classes the captions name, held against their images.

    Args:
        captions: image_id -> tokenized caption.
        references: image_id -> tokenized references.
        labels: image_id -> class label, None where there is none.
    """
    named, wrong, examples = [], [], {}
    for image_id, caption in captions.items():
        said = class_names(caption)
        there = classes_of([*references[image_id], *filter(None, [labels.get(image_id)])])
        others = said - there
        named.append(len(said))
        wrong.append(len(others))
        for name in sorted(others):
            examples[name] = examples.get(name, 0) + 1
    often = dict(sorted(examples.items(), key=lambda pair: (-pair[1], pair[0])))
    return NamedClasses(np.array(named), np.array(wrong), often)


def classes_of(texts: Iterable[str]) -> set[str]:
    """The classes that any of the texts names."""
    return set().union(*(class_names(text) for text in texts))


def _singular(word: str) -> str:
    """The word without a plural ending, as far as the names need it."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


# Labels such as RSICD's "railwaystation" are written without spaces.
_NAMES = {form: names[0] for names in CLASSES for name in names for form in (name, name.replace(" ", ""))}
