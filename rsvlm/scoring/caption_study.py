"""All runs of a study scored: per source, on released and distinct references, on seen and unseen ones, in pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.files import read_json_lines
from rsvlm.scoring.bootstrap import bootstrap_mean, paired_difference
from rsvlm.scoring.captions import METRICS, CaptionScores, rounded, score_captions, summarize
from rsvlm.scoring.human import hold_out, summarize_seeds
from rsvlm.scoring.java import Meteor, tokenize_captions

RESERVED = ("protocol", "paired")  # keys of the metrics file that are no runs
HUMAN = "human"
STUDIED = "captioner"
REFERENCES = ("released", "distinct")
PROTOCOL = {
    "metrics": "pycocoevalcap 1.2: PTB tokens, lower case, no punctuation; corpus level; CIDEr with its factor 10",
    "released": "references as released, duplicates included",
    "distinct": "an image's references that are equal after tokenising count once",
    "idf": "from all references of one source and split",
    "interval": "95 % percentile bootstrap over images; CIDEr's idf held fixed; BLEU and METEOR from resampled counts",
    "paired": "difference of CIDEr on the same images, resampled together; p two-sided",
    "human": "one caption an image held out, scored against the image's other captions; mean over draws",
    "seen": "CIDEr (released) on images whose distinct references are also a training image's; unseen: on the others",
    "text": "words are PTB tokens; copied: the share of captions that equal a training caption after tokenising",
    "one_image": "CIDEr of a single image is 0 by definition: its idf is 0",
}


@dataclass(frozen=True)
class StudyScores:
    """``metrics``: what METRICS/score_captions.json holds; ``per_image``: a row for each run, image and references."""

    metrics: dict
    per_image: pd.DataFrame


def read_runs(folder: Path, table: pd.DataFrame) -> dict[str, dict[str, dict[str, str]]]:
    """run -> source -> {image_id: caption}, from all ``RUN.jsonl`` in a folder, for the rows of ``table``.

    Rows of images outside the table (another split) are left aside.

    Raises:
        FileNotFoundError: no run in the folder.
        ValueError: an image of the table without a caption, an image twice, a row of another shape; names both.
    """
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no generated captions (*.jsonl); run the stage generate_captions first")
    source_of = dict(zip(table["image_id"], table["source"]))
    runs = {}
    for path in paths:
        if path.stem in (*RESERVED, HUMAN):
            raise ValueError(f"{path}: {path.stem!r} cannot be a run's name, the metrics use it; rename the file")
        captions = read_captions(path)
        missing = [image_id for image_id in source_of if image_id not in captions]
        if missing:
            raise ValueError(
                f"{path}: no caption for {len(missing)} of {len(source_of)} images, such as {missing[0]!r};"
                " run the stage generate_captions again"
            )
        by_source: dict[str, dict[str, str]] = {}
        for image_id, source in source_of.items():
            by_source.setdefault(source, {})[image_id] = captions[image_id]
        runs[path.stem] = by_source
    return runs


def read_captions(path: Path) -> dict[str, str]:
    """image_id -> caption of one run's file.

    Raises:
        ValueError: a row without image_id or caption, a caption that is no text, an image twice; names file and line.
    """
    captions: dict[str, str] = {}
    for number, row in enumerate(read_json_lines(path), start=1):
        image_id, caption = (row.get("image_id"), row.get("caption")) if isinstance(row, dict) else (None, None)
        if not isinstance(image_id, str) or not isinstance(caption, str):
            raise ValueError(f'{path}: line {number}: expected {{"image_id": text, "caption": text}}')
        if image_id in captions:
            raise ValueError(f"{path}: line {number}: second caption for {image_id!r}")
        captions[image_id] = caption
    return captions


def score_study(
    runs: Mapping[str, Mapping[str, Mapping[str, str]]],
    table: pd.DataFrame,
    *,
    split: str,
    seed: int,
    resamples: int,
    human_draws: int = 5,
    spice_jars: str | None = None,
    spice_cache: Path | None = None,
    log: Callable[[str], None] = print,
) -> StudyScores:
    """Scores of every run, and of a human, on one split of every source.

    Args:
        runs: as ``read_runs`` gives them.
        table: the caption table with all its splits: image_id, source, split, captions.
        human_draws: how often a human caption is drawn for each image; 0: no human row.

    Raises:
        ValueError: the split has no images.
        JavaNotFound: no Java runtime.
    """
    tested, training = table[table["split"] == split], table[table["split"] == "train"]
    if tested.empty:
        raise ValueError(f"no images in split {split!r}; the table has {', '.join(sorted(set(table['split'])))}")
    tokens = tokenize_captions(_all_texts(runs, tested, training))
    known_sets = {frozenset(tokens[text] for text in captions) for captions in training["captions"]}
    known_captions = {text for texts in known_sets for text in texts}
    metrics: dict = {run: {} for run in [*sorted(runs), *([HUMAN] if human_draws else [])]}
    metrics["paired"], tables = {}, []
    with Meteor() as meteor:
        for source in sorted(set(tested["source"])):
            rows = tested[tested["source"] == source]
            references = {image_id: list(captions) for image_id, captions in zip(rows["image_id"], rows["captions"])}
            seen = np.array([frozenset(map(tokens.get, texts)) in known_sets for texts in references.values()])
            score = _scorer(tokens, meteor, spice_jars, spice_cache)
            scored: dict[str, dict[str, CaptionScores]] = {}
            for run in sorted(runs):
                log(f"{source}: scoring {run}, {len(references)} images")
                captions = runs[run][source]
                scored[run] = {kind: score(captions, references, kind == "distinct") for kind in REFERENCES}
                metrics[run][source] = {
                    **{kind: summarize(scored[run][kind], seed=seed, resamples=resamples) for kind in REFERENCES},
                    **_seen_and_unseen(scored[run]["released"].per_image["CIDEr"], seen, seed, resamples),
                    "text": describe_texts([tokens[text] for text in captions.values()], known_captions),
                }
                tables += [
                    _labelled(scored[run][kind].per_image, run, source, split, kind, seen) for kind in REFERENCES
                ]
            metrics["paired"][source] = compare_runs(scored, seed=seed, resamples=resamples)
            if human_draws:
                log(f"{source}: scoring a held-out human caption, {human_draws} draws")
                metrics[HUMAN][source] = {}
                for kind in REFERENCES:
                    human = _score_human(references, tokens, score, kind, human_draws)
                    if human:
                        metrics[HUMAN][source][kind] = summarize_seeds(human, seed=seed, resamples=resamples)
                        rows = _human_rows(human, source, split, kind, dict(zip(references, seen)))
                        tables.append(rows)
                        if kind == "released":
                            parts = _seen_and_unseen(rows["CIDEr"], rows["reference_set_seen"], seed, resamples)
                            metrics[HUMAN][source] |= parts
    protocol = {**PROTOCOL, "split": split, "seed": seed, "resamples": resamples, "human_draws": human_draws}
    metrics["protocol"] = protocol
    return StudyScores(metrics, pd.concat(tables, ignore_index=True))


def compare_runs(scored: Mapping[str, Mapping[str, CaptionScores]], *, seed: int, resamples: int) -> dict[str, dict]:
    """ "captioner - RUN" -> references -> {"value", "low", "high", "p", "n"}: CIDEr's paired differences."""
    if STUDIED not in scored:
        return {}
    pairs = {}
    for run in sorted(set(scored) - {STUDIED}):
        pairs[f"{STUDIED} - {run}"] = {
            kind: rounded(
                paired_difference(
                    scored[STUDIED][kind].per_image["CIDEr"].to_numpy(),
                    scored[run][kind].per_image["CIDEr"].to_numpy(),
                    seed=seed,
                    resamples=resamples,
                )
            )
            for kind in REFERENCES
        }
    return pairs


def describe_texts(tokenized: Sequence[str], training: set[str]) -> dict[str, float | int]:
    """{"mean_words", "vocabulary", "distinct_captions", "copied"} of one run's tokenized captions."""
    words = [text.split() for text in tokenized]
    return rounded(
        {
            "mean_words": float(np.mean([len(row) for row in words])),
            "vocabulary": len({word for row in words for word in row}),
            "distinct_captions": len(set(tokenized)),
            "copied": float(np.mean([text in training for text in tokenized])),
        }
    )


def summary_table(metrics: Mapping, source: str) -> pd.DataFrame:
    """One row a run, best CIDEr first: metrics as released, CIDEr on distinct references and both halves, texts."""
    rows = []
    for run in metrics:
        entry = metrics[run].get(source) if run not in RESERVED else None
        if not entry or "released" not in entry:
            continue
        row: dict[str, object] = {"run": run, **{metric: entry["released"][metric]["value"] for metric in METRICS}}
        for name, part in (("CIDEr distinct", "distinct"), ("CIDEr seen", "seen"), ("CIDEr unseen", "unseen")):
            row[name] = entry.get(part, {}).get("CIDEr", {}).get("value")
        rows.append(row | entry.get("text", {}))
    frame = pd.DataFrame(rows).set_index("run").astype(float)
    return frame.sort_values("CIDEr", ascending=False, kind="stable")


def paired_table(metrics: Mapping, source: str) -> pd.DataFrame:
    """One row a pair and kind of references: the paired difference of CIDEr with its interval and p-value."""
    columns = ["pair", "references", "difference", "low", "high", "p", "n"]
    rows = [
        [pair, kind, *(entry[key] for key in ("value", "low", "high", "p", "n"))]
        for pair, kinds in metrics["paired"].get(source, {}).items()
        for kind, entry in kinds.items()
    ]
    return pd.DataFrame(rows, columns=columns)


def _all_texts(runs: Mapping, tested: pd.DataFrame, training: pd.DataFrame) -> list[str]:
    texts = [text for frame in (tested, training) for captions in frame["captions"] for text in captions]
    return texts + [
        text for by_source in runs.values() for captions in by_source.values() for text in captions.values()
    ]


def _scorer(tokens: Mapping[str, str], meteor: Meteor, spice_jars: str | None, spice_cache: Path | None) -> Callable:
    def score(captions: Mapping[str, str], references: Mapping[str, Sequence[str]], distinct: bool) -> CaptionScores:
        ordered = {image_id: captions[image_id] for image_id in references}
        options = {"spice_jars": spice_jars, "spice_cache": spice_cache, "tokens": tokens, "meteor": meteor}
        return score_captions(ordered, references, distinct=distinct, **options)

    return score


def _seen_and_unseen(cider: pd.Series, seen: Sequence[bool], seed: int, resamples: int) -> dict[str, dict]:
    """CIDEr on both halves of the images; the idf is still the whole set's."""
    halves = {}
    mask = np.asarray(seen, dtype=bool)
    for name, chosen in (("seen", mask), ("unseen", ~mask)):
        values = cider.to_numpy()[chosen]
        entry: dict[str, object] = {"value": None, "low": None, "high": None, "n": 0, "reason": "no such image"}
        if len(values):
            low, high = bootstrap_mean(values, seed=seed, resamples=resamples)
            entry = rounded({"value": float(values.mean()), "low": low, "high": high, "n": len(values)})
        halves[name] = {"CIDEr": entry}
    return halves


def _score_human(references: Mapping, tokens: Mapping, score: Callable, kind: str, draws: int) -> list[CaptionScores]:
    """The scores of each draw; none where no image has two captions."""
    scored = []
    for draw in range(draws):
        held, rest = hold_out(references, tokens, seed=draw, distinct=kind == "distinct")
        if held:
            scored.append(score(held, rest, False))
    return scored


def _labelled(per_image: pd.DataFrame, run: str, source: str, split: str, kind: str, seen: np.ndarray) -> pd.DataFrame:
    labels = {"run": run, "source": source, "split": split, "image_id": per_image["image_id"], "references": kind}
    scores = {metric: per_image[metric] for metric in METRICS if metric in per_image}
    return pd.DataFrame({**labels, "reference_set_seen": seen, **scores})


def _human_rows(
    scores: list[CaptionScores], source: str, split: str, kind: str, seen: Mapping[str, bool]
) -> pd.DataFrame:
    """Per-image scores averaged over the draws."""
    frame = pd.concat([score.per_image for score in scores]).groupby("image_id", sort=False).mean().reset_index()
    return _labelled(frame, HUMAN, source, split, kind, frame["image_id"].map(seen).to_numpy())
