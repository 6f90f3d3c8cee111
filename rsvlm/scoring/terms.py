"""What the words on the pages mean, one sentence each, defined here and in ``rsvlm.scoring.runs`` alone."""

from collections.abc import Iterable

from rsvlm.scoring.runs import METHODS, RUNS

_BLEU = (
    "share of the caption's word sequences of up to {} that stand in a reference, shorter captions penalised; 0 to 1"
)
TERMS = {
    "BLEU-1": "share of the caption's words that stand in a reference, shorter captions penalised; 0 to 1",
    **{f"BLEU-{length}": _BLEU.format(f"{word} words") for length, word in ((2, "two"), (3, "three"), (4, "four"))},
    "METEOR": "words matched with the reference that fits best, inflections and synonyms counting, less a penalty for "
    "broken order; 0 to 1",
    "ROUGE_L": "longest common sequence of words with a reference, between precision and recall; 0 to 1",
    "CIDEr": "agreement with all references on word sequences, rare ones weighing most, on pycocoevalcap's scale: 3.5, "
    "not 350",
    "SPICE": "agreement of objects, attributes and relations, as parsed from caption and references; 0 to 1",
    "CLIPScore": "2.5 times the cosine of image and caption in this study's own encoder; it compares this study's runs "
    "only",
    "RefCLIPScore": "harmonic mean of CLIPScore and the caption's nearness to its best reference in the same encoder",
    "distinct": "scored with each image's repeated references counted once",
    "released": "scored with the references as the source released them, repeated ones included",
    "seen": "of images whose set of references is also some training image's",
    "unseen": "of images whose set of references no training image has",
    "gap": "the run's score on an image less that of the run it is compared with",
    "95 % interval": "what the score would be on other draws of the test images, by bootstrap",
    "marked words": "words of a caption that no reference says, in no other form and by no near-synonym; function words "
    "are never marked",
    "R@K": "share of searches, in percent, with a right answer among the first K (recall at K)",
    "image to text": "an image looks for its captions",
    "text to image": "a caption looks for its image",
    "mean recall": "mean of R@1, R@5 and R@10 in both directions, right answers by image: a caption's own image alone",
    "mean recall by text": "the same mean when every image and caption with an equal text is right",
    "specialist": "trained or fine-tuned on that benchmark alone",
    "generalist": "one model for several benchmarks",
    "zero-shot": "not trained on that benchmark",
    "read": "the figure was found in the publication itself",
    "second-hand": "the figure was found in another publication's table",
    "recalled": "the figure is from memory and not verified",
}


def explain(name: str) -> str:
    """The sentence on a term, a run or a retrieval method, by the name that pages show; empty where there is none."""
    named = {entry.name: entry.note for table in (METHODS, RUNS) for entry in table.values()}
    return TERMS.get(name) or named.get(name, "")


def explained(names: Iterable[str]) -> dict[str, str]:
    """name -> sentence of those that have one, each once, in their order."""
    return {name: explain(name) for name in dict.fromkeys(names) if explain(name)}
