"""Answers to instructions scored: right or not, as asked or not, alike in every wording, and said with reason.

What counts as right, by kind, is fixed here; an answer is read leniently (synonyms of ``rsvlm/data/objects.txt``, digits
for number words), its form strictly. Hallucination is CHAIR (Rohrbach et al. 2018) on that closed list: CHAIR-RS, things
said that neither a reference, nor the class label, nor the map has. Abstention is conformal risk control (Angelopoulos
et al. 2022, "Conformal Risk Control", theorem 1) on the loss "answered, and wrong".
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from rsvlm.data.instruction_kinds import FIRST, NO, SECOND, YES
from rsvlm.data.names import NUMBERS
from rsvlm.data.objects import COLOURS, mentions_in, plural_of, things_in, with_kinds
from rsvlm.data.task_files import TWO_IMAGES
from rsvlm.scoring.bootstrap import bootstrap_corpus, difference_of_draws, mean_of, resampled_sums, rounded

COLUMNS = [
    "task_id", "question", "image_id", "source", "split", "kind", "wording", "answer", "right", "format_obeyed",
    "said", "named", "wrong",
]  # fmt: skip
PROTOCOL = (
    "right: yes or no, a number, a place, a choice or a word as in the truth, synonyms counted alike; list: F1 of what is"
    " listed and what is there; json: share of the keys with the right value, 0 unless it parses with exactly the keys asked"
    " for; sentences: as long as asked for, naming at least one thing and none that is not there; shares of the image: the"
    " right step of the captions' scale or the next one; things and answers are asked for alike often as far as they occur;"
    " interval over images"
)
_DENIAL = re.compile(r"\b(no|not|none|neither|nothing|without|cannot|isn't|aren't|can't|don't|doesn't)\b")
_OTHER_WORDS = {
    "upper": "top",
    "lower": "bottom",
    "center": "middle",
    "centre": "middle",
    "central": "middle",
    "gray": "grey",
}
_DENSITIES = {"dense", "medium", "sparse"}
Detect = Callable[[str], str | None]


def score_answers(
    tasks: Sequence[Mapping], answers: Mapping[str, str], *, detect: Detect | None = None
) -> pd.DataFrame:
    """One row a task, in the tasks' order, with the columns COLUMNS.

    ``right`` is 0, 1 or a share; NaN for a language without ``detect``. ``said`` is the answer as it was read, None where
    it is not of a closed question. ``named`` and ``wrong`` count the things that an open answer names and those of them that
    are not there; None for the others.

    Args:
        answers: task_id -> text.
        detect: text -> language code, of ``rsvlm.languages``; right is then an answer in the language asked for.

    Raises:
        ValueError: a task has no answer; names the first and how many.
    """
    missing = [task["task_id"] for task in tasks if task["task_id"] not in answers]
    if missing:
        raise ValueError(f"{len(missing)} of {len(tasks)} tasks have no answer, for example {missing[0]!r}")
    rows = []
    for task in tasks:
        text = answers[task["task_id"]].strip()
        right, obeyed, said = _READERS[task["kind"]](text, task["truth"], detect)
        named = wrong = None
        if "there" in task["truth"]:
            names = things_in(text)
            named, wrong = len(names), len(names - set(task["truth"]["there"]))
        own = {key: task[key] for key in COLUMNS[:7]}
        rows.append(
            own
            | {"answer": text, "right": float(right), "format_obeyed": bool(obeyed), "said": said}
            | {"named": named, "wrong": wrong}
        )
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"named": "Int64", "wrong": "Int64"})


# How an answer is read: (text, truth, detector) -> right, form obeyed, what it said


def _yes_or_no(text: str, truth: Mapping, detect: Detect | None) -> tuple:
    words = re.findall(r"[a-z']+", text.lower())
    said = next((word for word in words if word in (YES, NO)), None)
    return said == truth["value"], said is not None, said


def _number(text: str, truth: Mapping, detect: Detect | None) -> tuple:
    found = [_as_number(word) for word in re.findall(r"[a-z]+|\d+", text.lower())]
    numbers = [number for number in found if number is not None]
    said = numbers[0] if numbers else None
    return said == truth["value"], said is not None, said


def _as_number(word: str) -> int | None:
    if word.isdigit():
        return int(word)
    return NUMBERS.index(word) if word in NUMBERS else None


def _chosen(text: str, truth: Mapping, detect: Detect | None) -> tuple:
    """One of the choices; the longest words win ("top left" is not "top"), and two different ones are no answer."""
    words = " ".join(_OTHER_WORDS.get(word, word) for word in re.findall(r"[a-z]+", text.lower()))
    by_length = sorted(truth["choices"], key=lambda choice: (-len(choice), choice))
    found = re.findall(rf"\b({'|'.join(map(re.escape, by_length))})\b", words)
    said = found[0] if len(set(found)) == 1 else None
    return said == truth["value"], said is not None, said


def _named_choice(text: str, truth: Mapping, detect: Detect | None) -> tuple:
    """One of the things that can be chosen, by any of its words."""
    found = [mention.name for mention in mentions_in(text) if mention.name in truth["choices"]]
    said = found[0] if len(set(found)) == 1 else None
    return said == truth["value"], said is not None, said


def _of_two(text: str, truth: Mapping, detect: Detect | None) -> tuple:
    """Yes or no, or the first or the second image; one that is told as both is no answer."""
    if YES in truth["choices"]:
        return _yes_or_no(text, truth, detect)
    ordinals = {"first": FIRST, "1st": FIRST, "1": FIRST, "second": SECOND, "2nd": SECOND, "2": SECOND}
    found = {ordinals[word] for word in re.findall(r"[a-z0-9]+", text.lower()) if word in ordinals}
    said = found.pop() if len(found) == 1 else None
    return said == truth["value"], said is not None, said


def _scene(text: str, truth: Mapping, detect: Detect | None) -> tuple:
    return _same_scene(text, truth["value"]), bool(text), text.lower().strip(" .")


def _same_scene(text: str, scene: str) -> bool:
    said, right = text.lower().strip(" ."), scene.lower()
    if said == right:
        return True
    density = [_DENSITIES & set(one.split()) for one in (said, right)]
    return bool(things_in(right)) and things_in(said) == things_in(right) and density[0] == density[1]


def _items(text: str, form: str) -> tuple[list[str], bool]:
    """What a list holds, and whether it has the form asked for."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if form == "commas":
        items = [part.strip(" .") for part in re.split(r",|\band\b", text) if part.strip(" .")]
        return items, len(lines) == 1 and text.count(",") >= min(1, len(items) - 1)
    start = r"[-*•]\s+" if form == "bullets" else r"\d+[.)]\s+"
    obeyed = bool(lines) and all(re.match(start, line) for line in lines)
    if form == "numbers":
        obeyed = obeyed and [int(re.match(r"\d+", line)[0]) for line in lines] == list(range(1, len(lines) + 1))
    return [re.sub(r"^([-*•]|\d+[.)])\s+", "", line) for line in lines], obeyed


def _list(text: str, truth: Mapping, detect: Detect | None) -> tuple:
    items, obeyed = _items(text, truth["form"])
    return _f1(items, truth["value"], truth["there"]), obeyed, None


def _f1(items: Sequence[str], value: Sequence[str], there: Iterable[str]) -> float:
    """F1 of the items, each true where it names things that are all there, and of the value, each found where one names it.

    An item that comes twice, or names nothing of the closed list, is not true.
    """
    named = [frozenset(things_in(item)) for item in items]
    if not named or not value:
        return 0.0
    true = len({one for one in named if one and one <= set(there)})
    found = len(set(value) & with_kinds(set().union(*named)))
    precision, recall = true / len(named), found / len(set(value))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _json(text: str, truth: Mapping, detect: Detect | None) -> tuple:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):  # also numbers too long and lists too deep for Python
        return 0.0, False, None
    value = truth["value"]
    if not isinstance(said, dict) or set(said) != set(value):
        return 0.0, False, None
    return float(np.mean([_same_value(said[key], value[key], truth["there"]) for key in value])), True, None


def _same_value(said: object, value: object, there: Iterable[str]) -> float:
    if isinstance(value, list):
        return _f1([str(one) for one in said], value, there) if isinstance(said, list) else 0.0
    if isinstance(value, str):
        return float(isinstance(said, str) and _same_scene(said, value))
    return float(type(said) is type(value) and said == value)


def _one_word(text: str, truth: Mapping, detect: Detect | None) -> tuple:
    words = re.findall(r"[\w'-]+", text.lower())
    right = {form for word in truth["value"] for form in (word, plural_of(word))}
    said = words[0] if len(words) == 1 else None
    alike = said is not None and bool(things_in(said) & set().union(*map(things_in, truth["value"])))
    return said in right or alike, said is not None, said


def _at_most_words(text: str, truth: Mapping, detect: Detect | None) -> tuple:
    obeyed = 1 <= len(text.split()) <= truth["value"]
    return obeyed and _is_true(text, truth), obeyed, None


def _one_sentence(text: str, truth: Mapping, detect: Detect | None) -> tuple:
    parts = [part for part in re.split(r"(?<=[.!?])\s+", text) if part]
    obeyed = len(parts) == 1 and text[-1] in ".!?" and len(text.split()) > 2
    return obeyed and _is_true(text, truth), obeyed, None


def _is_true(text: str, truth: Mapping) -> bool:
    """Whether a text names something, and nothing that is not there."""
    names = things_in(text)
    return bool(names) and names <= set(truth["there"])


def _language(text: str, truth: Mapping, detect: Detect | None) -> tuple:
    if detect is None:
        return float("nan"), bool(text), None
    found = detect(text) if text else None
    return found == truth["value"], found == truth["value"], found


def _premise(text: str, truth: Mapping, detect: Detect | None) -> tuple:
    """Where the thing is not there: whether that is said. Where it is: its colour, or its share within a step."""
    low = " ".join(_OTHER_WORDS.get(word, word) for word in re.findall(r"[a-z']+", text.lower()))
    if _DENIAL.search(low):
        return not truth["premise"], True, NO
    steps = truth.get("steps")
    if steps:
        by_length = sorted(steps, key=len, reverse=True)
        found = re.search(rf"\b({'|'.join(by_length)})\b", low)
        said = found[0] if found else None
        near = said and truth["premise"] and abs(steps.index(said) - steps.index(truth["value"])) <= 1
        return bool(near), said is not None, said
    colours = [word for word in low.split() if word in COLOURS]
    said = colours[0] if len(set(colours)) == 1 else None
    return truth["premise"] and said == truth["value"], bool(colours), said


_READERS: dict[str, Callable[[str, Mapping, Detect | None], tuple]] = {
    "presence": _yes_or_no,
    "negation": _yes_or_no,
    "count": _number,
    "where": _chosen,
    "climate": _chosen,
    "largest": _named_choice,
    "compare": _named_choice,
    TWO_IMAGES: _of_two,
    "not_visible": _named_choice,
    "scene": _scene,
    "list": _list,
    "json": _json,
    "one_word": _one_word,
    "at_most_words": _at_most_words,
    "one_sentence": _one_sentence,
    "language": _language,
    "false_premise": _premise,
}


# Baselines and tables


def majority_answers(training: Sequence[Mapping], tasks: Sequence[Mapping]) -> dict[str, str]:
    """task_id -> the most frequent training answer of its kind that could be one: what can be said without an image or a
    word of the question but its kind, its choices and the form that it asks for. Empty where training has none."""
    by_kind: dict[str, Counter] = {}
    for task in training:
        by_kind.setdefault(task["kind"], Counter())[(task["answer"], _shape(task))] += 1
    ranked = {kind: sorted(own.items(), key=lambda one: (-one[1], one[0][0])) for kind, own in by_kind.items()}
    answers = {}
    for task in tasks:
        fits = (answer for (answer, shape), _ in ranked.get(task["kind"], ()) if _fits(answer, shape, task))
        answers[task["task_id"]] = next(fits, "")
    return answers


def _shape(task: Mapping) -> tuple:
    """What an answer's form depends on: a list's form, JSON's keys, a language, the scale of a share or colour."""
    truth = task["truth"]
    keys = tuple(sorted(truth["value"])) if task["kind"] == "json" else ()
    return truth.get("form"), keys, task["language"], "steps" in truth


def _fits(answer: str, shape: tuple, task: Mapping) -> bool:
    if task["kind"] == "at_most_words":
        return len(answer.split()) <= task["truth"]["value"]
    if task["kind"] in ("compare", "not_visible", TWO_IMAGES):
        return answer in task["truth"]["choices"]
    return shape == _shape(task)


def accuracy_by_kind(
    scores: pd.DataFrame, baselines: Mapping[str, pd.DataFrame], *, seed: int, resamples: int = 1000
) -> dict[str, dict[str, dict]]:
    """Source -> kind (and ``all``, the mean of the kinds) -> ``right``, ``format_obeyed``, each baseline's right, and the
    difference to each with its p-value, as {"value", "low", "high", "n"}; n: images. ``tasks``: their number.

    Args:
        scores: of ``score_answers``.
        baselines: name (majority, blind, shuffled) -> scores of the same tasks.

    Raises:
        ValueError: a baseline has other tasks.
    """
    for name, other in baselines.items():
        if list(other["task_id"]) != list(scores["task_id"]):
            raise ValueError(f"the baseline {name!r} has answers to other tasks than the scores")
    found: dict[str, dict[str, dict]] = {}
    for (source, kind), own in scores.groupby(["source", "kind"], sort=True):
        if own["right"].isna().any():
            continue
        entry = {
            name: bootstrap_corpus(_by_image(own, column), mean_of, seed=seed, resamples=resamples)
            for name, column in (("right", "right"), ("format_obeyed", "format_obeyed"))
        }
        for name, other in baselines.items():
            rows = other.loc[own.index]
            entry[name] = bootstrap_corpus(_by_image(rows, "right"), mean_of, seed=seed, resamples=resamples)
            both = _by_image(own.assign(right=own["right"] - rows["right"]), "right")
            draws = mean_of(resampled_sums(both, seed=seed, resamples=resamples))
            entry[f"minus_{name}"] = difference_of_draws(float(mean_of(both.sum(axis=0))), draws, len(both))
        found.setdefault(source, {})[kind] = entry | {"tasks": len(own)}
    return found


def _by_image(scores: pd.DataFrame, column: str) -> np.ndarray:
    """(images, 2): each image's sum of a column and its number of tasks, whose sums give the mean over tasks."""
    groups = scores[column].astype(float).groupby(scores["image_id"], sort=True)
    return np.stack([groups.sum().to_numpy(), groups.size().to_numpy(float)], axis=1)


def robustness(scores: pd.DataFrame) -> dict[str, dict[str, dict]]:
    """Source -> kind -> how much wordings of the same question matter.

    ``lowest`` and ``highest``: the accuracy of the worst and best wording among those of at least 5 tasks (None with fewer
    than two such); ``contradictory``: share of the questions, asked in several wordings, whose answers differ as read;
    ``half_right``: whose answers are right in one wording and wrong in another. ``n``: questions.
    """
    found: dict[str, dict[str, dict]] = {}
    for (source, kind), own in scores.groupby(["source", "kind"], sort=True):
        several = own.groupby("question").filter(lambda rows: len(rows) > 1)
        means = own.groupby("wording")["right"].agg(["mean", "size"])
        means = means.loc[means["size"] >= 5, "mean"]
        several_means = len(means) > 1 and not means.isna().any()
        entry: dict[str, float | int | None] = {
            "lowest": float(means.min()) if several_means else None,
            "highest": float(means.max()) if several_means else None,
            "n": int(several["question"].nunique()),
        }
        closed = several[several.groupby("question")["said"].transform("count") > 0]
        differ = closed.groupby("question")["said"].agg(lambda said: said.map(str).nunique() > 1)
        spread = several.groupby("question")["right"].agg(lambda right: right.max() - right.min() >= 0.5)
        entry["contradictory"] = float(differ.mean()) if len(differ) else None
        entry["half_right"] = float(spread.mean()) if len(spread) else None
        found.setdefault(source, {})[kind] = rounded(entry)
    return found


def chair_rs(
    texts: Mapping[str, str], there: Mapping[str, Iterable[str]], *, seed: int, resamples: int = 1000
) -> dict[str, object]:
    """Hallucinated things: ``things`` (share of the things named that are not there, CHAIR_i), ``texts`` (share of the texts
    with one, CHAIR_s), each with its interval over texts, and ``most``: thing -> how many texts name it wrongly.

    Args:
        texts: image_id (or any id) -> caption or answer.
        there: the same ids -> all that is there, by the closed list, with what it is a kind of (``Facts.named``).
    """
    said = {name: things_in(text) for name, text in texts.items()}
    wrong = {name: said[name] - set(there[name]) for name in texts}
    of_things = np.array([[len(wrong[name]), len(said[name])] for name in texts], dtype=float).reshape(-1, 2)
    of_texts = np.array([[bool(wrong[name]), 1] for name in texts], dtype=float).reshape(-1, 2)
    most = Counter(thing for own in wrong.values() for thing in own)
    share = _share_of_sums
    return {
        "things": bootstrap_corpus(of_things, share, seed=seed, resamples=resamples),
        "texts": bootstrap_corpus(of_texts, share, seed=seed, resamples=resamples),
        "most": dict(sorted(most.items(), key=lambda pair: (-pair[1], pair[0]))[:10]),
    }


def _share_of_sums(sums: np.ndarray) -> np.ndarray:
    """First by second sum, 0 where nothing was named."""
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


# Knowing when not to answer


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> pd.DataFrame:
    """Columns ``coverage``, ``risk``, ``threshold``: answering the surest first, the share answered and the error among them.

    Equal confidences are answered together. (El-Yaniv and Wiener 2010, "On the foundations of noise-free selective
    classification".)

    Args:
        confidence: (n,) higher is surer; right: (n,) between 0 and 1.

    Raises:
        ValueError: no answers, lengths differ, or a confidence is not finite.
    """
    confidence, right = _checked(confidence, right)
    order = np.argsort(-confidence, kind="stable")
    ends = np.flatnonzero(np.diff(confidence[order], append=-np.inf))
    answered = ends + 1
    wrong = np.cumsum(1 - right[order])[ends]
    return pd.DataFrame(
        {"coverage": answered / len(right), "risk": wrong / answered, "threshold": confidence[order][ends]}
    )


def area_under_risk(curve: pd.DataFrame) -> float:
    """The mean risk over all coverages (Geifman et al. 2019, AURC): lower is better, the whole error where confidence
    says nothing."""
    steps = np.diff(curve["coverage"].to_numpy(), prepend=0.0)
    return float((steps * curve["risk"].to_numpy()).sum())


def conformal_threshold(confidence: np.ndarray, right: np.ndarray, error: float) -> float:
    """The lowest confidence at which to answer so that at most ``error`` of all questions are answered wrongly.

    Calibrated on questions like those to come: with n of them, the lowest threshold with (n * rate + 1) / (n + 1) <= error,
    where rate counts those that are answered and wrong. The promise holds on average over calibration sets; infinity (never
    answer) where n is too small for it.

    Args:
        confidence: (n,); right: (n,) between 0 and 1; error: above 0 and below 1.

    Raises:
        ValueError: the error is no share, or as ``risk_coverage``.
    """
    if not 0 < error < 1:
        raise ValueError(f"error = {error}: must be above 0 and below 1")
    confidence, right = _checked(confidence, right)
    curve = risk_coverage(confidence, right)
    n = len(right)
    rate = curve["risk"].to_numpy() * curve["coverage"].to_numpy()
    kept = (n * rate + 1) / (n + 1) <= error + 1e-12
    return float(curve["threshold"].to_numpy()[kept].min()) if kept.any() else float("inf")


def abstention(
    confidence: np.ndarray, right: np.ndarray, threshold: float, error: float
) -> dict[str, float | int | None]:
    """What a threshold does on other questions: ``promised`` (the error it was calibrated for), ``observed`` (share of all
    questions that are answered wrongly), ``answered`` (share), ``wrong_of_answered`` (None without any), ``n``."""
    confidence, right = _checked(confidence, right)
    answered = confidence >= threshold
    wrong = float((1 - right[answered]).sum())
    return rounded(
        {
            "promised": error,
            "observed": wrong / len(right),
            "answered": float(answered.mean()),
            "wrong_of_answered": wrong / float(answered.sum()) if answered.any() else None,
            "wrong_without": float((1 - right).mean()),
            "threshold": threshold if np.isfinite(threshold) else None,
            "n": len(right),
        }
    )


def _checked(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if len(confidence) != len(right) or len(right) == 0:
        raise ValueError(f"{len(confidence)} confidences and {len(right)} answers: one each, and at least one")
    if not (np.isfinite(confidence).all() and np.isfinite(right).all()):
        raise ValueError("a confidence or a score is NaN or infinite")
    return confidence, right
