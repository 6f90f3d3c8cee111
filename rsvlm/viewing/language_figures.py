"""Tables and a figure of search by language, and what came out, in a sentence or two made of the numbers."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm.data.caption_languages import ENGLISH
from rsvlm.scoring.language_retrieval import ENCODER, NO_TRANSLATOR, TRANSLATE_FIRST
from rsvlm.scoring.published import RECALLS
from rsvlm.viewing.figures import label_recalls
from rsvlm.viewing.plots import GREEN, MARKERS, figure, series_colours
from rsvlm.viewing.results import Result, listed, percent

NAMES = {
    ENCODER: "encoder, fed the language",
    "english": "head: English only",
    "translated": "head: all languages",
    "distilled": "head: distilled",
    TRANSLATE_FIRST: "translated first",
}
SPOKEN_BY = ("consensus", "captioner")  # runs of captions in other languages
NONE = "No languages beside English in this study (add_languages.languages is empty): nothing was trained or scored."


def recipe_table(results: Mapping[str, Mapping]) -> pd.DataFrame:
    """Mean recall and leak in percent on validation images, a row a recipe, a column a language; last the encoder in English.

    Args:
        results: what METRICS/add_languages.json holds under "recipes".
    """
    rows = {}
    for recipe, own in results.items():
        rows[NAMES[recipe]] = {"mean of languages": own["mean_recall"], "kept step": own["kept_step"]} | {
            language: found["mean_recall"] for language, found in own["languages"].items()
        }
        if own["mixed"]:
            rows[NAMES[recipe]]["leak"] = own["mixed"]["leak"]
        english = own["encoder_in_english"]
    if rows:
        mean = float(np.mean([value for language, value in english.items() if language != ENGLISH]))
        rows["the same captions in English, by the encoder"] = {"mean of languages": mean} | english
    table = pd.DataFrame.from_dict(rows, orient="index")
    shares = [column for column in table if column != "kept step"]
    table[shares] = (100 * table[shares]).round(1)
    return table.assign(**{"kept step": table["kept step"].astype("Int64")}) if rows else table


def recipe_curves(curve: pd.DataFrame, results: Mapping[str, Mapping]) -> Figure | None:
    """The contrastive loss over the steps, and the mean recall over the languages on validation images; None for none.

    Args:
        curve: columns recipe, step and contrastive, as ``rsvlm.training.languages.curve_table`` gives them.
        results: as ``recipe_table`` takes them.
    """
    if not results:
        return None
    drawn, (left, right) = figure(9.0, 3.2, columns=2)
    colours = series_colours(results)
    for number, (recipe, own) in enumerate(results.items()):
        look = {"color": colours[recipe], "linestyle": "-", "label": NAMES[recipe]}
        rows = curve[curve["recipe"] == recipe]
        left.plot(rows["step"], rows["contrastive"], marker="", **look)
        steps, means = zip(*((row["step"], 100 * row["mean_recall"]) for row in own["measured"]))
        right.plot(steps, means, marker=MARKERS[number], **look)
    left.set(xlabel="step", ylabel="contrastive loss", title="Training")
    right.set(xlabel="step", ylabel="mean recall over the languages, %", title="Validation")
    right.legend()
    return drawn


def language_table(metrics: Mapping) -> pd.DataFrame:
    """Recalls in percent, a row a source, language and method; the interval, and the difference to English, in points.

    A language without a translator in a package says so.

    Args:
        metrics: what METRICS/score_languages.json holds.
    """
    keys, rows = ["source", "language", "captions", "method"], []
    for source, language, method, own in _entries(metrics):
        mean, gap = own["mean_recall"], own["difference"]["mean_recall"]
        row = dict(zip(keys, (source, language, own["how"], NAMES.get(method, method))))
        row |= {recall: f"{100 * own[recall]['value']:.1f}" for recall in RECALLS}
        row["95 % interval"] = f"{100 * mean['low']:.1f} to {100 * mean['high']:.1f}"
        row["to English"] = f"{100 * gap['value']:+.1f} [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"
        rows.append(row)
    for source, language, how in _without_translator(metrics):
        rows.append(dict(zip(keys, (source, language, how, NAMES[TRANSLATE_FIRST]))) | {"to English": NO_TRANSLATOR})
    table = pd.DataFrame(rows, columns=[*keys, *RECALLS, "95 % interval", "to English"]).fillna("")
    order = {name: place for place, name in enumerate(NAMES.values())}
    by = table.assign(place=table["method"].map(order), first=table["language"] != ENGLISH)
    return (
        by.sort_values(["source", "first", "language", "place"], kind="stable")
        .drop(columns=["place", "first"])
        .set_index(keys)
    )


def language_figure(metrics: Mapping, source: str) -> Figure:
    """Mean recall by language, a dot with its 95 % interval for each method; a line where the encoder stands in English.

    Args:
        metrics: what METRICS/score_languages.json holds.
        source: the source to draw.

    Raises:
        ValueError: nothing was scored for the source.
    """
    entries = [(language, method, own) for of, language, method, own in _entries(metrics) if of == source]
    if not entries:
        raise ValueError(f"no language was scored for the source {source!r}")
    languages = sorted({language for language, *_ in entries}, key=lambda language: (language != ENGLISH, language))
    methods = [name for name in NAMES if any(method == name for _, method, _ in entries)]
    heights = {language: len(languages) - 1 - place for place, language in enumerate(languages)}
    hows = {language: own["how"] for language, _, own in entries}
    colours = series_colours(methods)
    drawn, axes = figure(7.2, 1.5 + 0.6 * len(languages))
    for number, method in enumerate(methods):
        own = [(language, entry["mean_recall"]) for language, name, entry in entries if name == method]
        shift = 0.7 * (0.5 - (number + 0.5) / len(methods))
        values = [mean["value"] for _, mean in own]
        reach = [[mean["value"] - mean["low"] for _, mean in own], [mean["high"] - mean["value"] for _, mean in own]]
        look = {
            "color": colours[method],
            "label": NAMES[method],
            "capsize": 2.5,
            "elinewidth": 1.4,
            "linestyle": "none",
        }
        places = [heights[language] + shift for language, _ in own]
        axes.errorbar(values, places, xerr=np.maximum(reach, 0), fmt=MARKERS[number % len(MARKERS)], **look)
    english = metrics[ENCODER][source][ENGLISH]["mean_recall"]["value"]
    axes.axvline(english, color=GREEN, linestyle="--", linewidth=1.2, label="encoder, in English")
    axes.set_yticks(list(heights.values()), [f"{language}\n({hows[language]})" for language in languages], fontsize=8)
    label_recalls(axes, f"{source}: mean recall by language")
    axes.set_xlim(left=0)
    return drawn


def mixed_table(metrics: Mapping) -> pd.DataFrame:
    """Which languages an image finds among the texts of all, in percent, a row a source and language.

    Args:
        metrics: what METRICS/score_languages.json holds.
    """
    rows = []
    for source, mixed in metrics["mixed"].items():
        for language, own in mixed["shares"].items():
            near = mixed["nearest"][language]
            rows.append(
                {
                    "source": source,
                    "language": language,
                    "captions": metrics[ENCODER][source][language]["how"],
                    "of the gallery": round(100 * own["gallery"], 1),
                    f"of the first {mixed['top']}": round(100 * own["value"], 1),
                    "95 % interval": f"{100 * own['low']:.1f} to {100 * own['high']:.1f}",
                    "nearest text in the same language": round(100 * near["value"], 1),
                    "by chance": round(100 * near["gallery"], 1),
                }
            )
    return pd.DataFrame(rows).set_index(["source", "language"]) if rows else pd.DataFrame()


def spoken_table(metrics: Mapping) -> pd.DataFrame:
    """Captions in each language against the references in it: a row a source, language and run.

    The consensus of the nearest training images' captions, which no model wrote, and the captioner where it was taught the
    language.

    Args:
        metrics: what METRICS/score_languages.json holds; its ``consensus`` and ``captioner``.
    """
    rows = []
    for run, source, language, scores in sorted(_spoken(metrics), key=lambda entry: entry[1:3]):
        row = {"source": source, "language": language, "run": run, "references": scores["how"]}
        row["in the language, %"] = f"{100 * scores['right_language']['value']:.1f}"
        for name, scale in (("BLEU", 100), ("chrF", 100), ("CIDEr", 1)):
            value, low, high = (scale * scores[name][key] for key in ("value", "low", "high"))
            row[name] = f"{value:.3g} [{low:.3g}, {high:.3g}]"
        rows.append(row)
    return pd.DataFrame(rows).set_index(["source", "language", "run"]) if rows else pd.DataFrame()


def added_result(metrics: Mapping) -> Result:
    """What METRICS/add_languages.json says: which recipe was kept, and how far it stands from English."""
    if not metrics["recipe"]:
        return Result(NONE)
    recipes, kept = metrics["recipes"], metrics["recipe"]
    means = [f"{NAMES[name]} {percent(own['mean_recall'])}" for name, own in recipes.items()]
    english = [value for language, value in recipes[kept]["encoder_in_english"].items() if language != ENGLISH]
    return Result(
        f"Mean recall over {listed(sorted(set(metrics['languages'])))} on {metrics['validation_images']:,} validation images: "
        f"{listed(means)}; English only is zero-shot. {_chosen(metrics)} The encoder reaches {percent(float(np.mean(english)))} with the same captions in English."
    )


def _chosen(metrics: Mapping) -> str:
    """Which recipe was kept, and why."""
    kept, best, figures = metrics["recipe"], metrics["choice"]["best"], metrics["choice"]["recipes"]
    equal = [recipe for recipe, own in figures.items() if own["equal"]]
    if len(equal) == 1:
        return (
            f"{NAMES[kept].capitalize()} was kept: no other comes within a standard error of it on these same images."
        )
    leaks = [
        f"{NAMES[recipe]} {100 * own['below_best']:.1f} points below (standard error {100 * own['standard_error']:.1f}), leak "
        f"{'not known' if own['leak'] is None else percent(own['leak'])}"
        for recipe, own in figures.items()
        if own["equal"]
    ]
    return (
        f"Within a standard error of the best, {NAMES[best]}, stand on these same images {listed(leaks)}; of these "
        f"{NAMES[kept]} was kept, whose language leaks least into a gallery of all."
    )


def languages_result(metrics: Mapping) -> Result:
    """What METRICS/score_languages.json says, source by source: what each language loses, and what translating first does."""
    kept = metrics["protocol"].get("recipe")
    if not kept:
        return Result(NONE)
    lines = []
    for source, own in metrics[kept].items():
        english = metrics[ENCODER][source][ENGLISH]["mean_recall"]
        losses = [f"{language} {_gap(entry)}" for language, entry in own.items() if language != ENGLISH]
        hows = sorted({entry["how"] for language, entry in own.items() if language != ENGLISH})
        line = (
            f"{source}, captions {listed(hows)}: in English the encoder has mean recall {100 * english['value']:.1f} % (95 % "
            f"interval {percent(english['low'], english['high'])}) on {english['n']:,} images; the head's differences to it in "
            f"points: {listed(losses)}"
        )
        first = metrics.get(TRANSLATE_FIRST, {}).get(source, {})
        if first:
            told = [f"{language} {_gap(entry)}" for language, entry in first.items()]
            line += f"; translated first: {listed(told)}"
        leak = metrics["mixed"][source]["leak"]
        lines.append(
            f"{line}. In a gallery of all languages, {percent(leak['value'])} ({percent(leak['low'], leak['high'])}) of the "
            f"first {metrics['mixed'][source]['top']} places would have to change language to mirror the gallery."
            f"{_captions_result(metrics, source)}"
        )
    return Result(" ".join(lines))


def _captions_result(metrics: Mapping, source: str) -> str:
    """What the captioner's captions in other languages are worth beside the consensus; empty where it writes none."""
    own, other = (metrics.get(run, {}).get(source, {}) for run in ("captioner", "consensus"))
    told = [
        f"{language} {scores['CIDEr']['value']:.2f} (consensus {other[language]['CIDEr']['value']:.2f}; in the language "
        f"{percent(scores['right_language']['value'])})"
        for language, scores in own.items()
        if language in other
    ]
    return f" The captioner's own captions have CIDEr {listed(told)}." if told else ""


def _spoken(metrics: Mapping) -> Iterator[tuple[str, str, str, Mapping]]:
    """(run, source, language, scores of its captions); what no model wrote first."""
    for run in SPOKEN_BY:
        for source, own in metrics.get(run, {}).items():
            for language, scores in own.items():
                yield run, source, language, scores


def _gap(entry: Mapping) -> str:
    gap = entry["difference"]["mean_recall"]
    return f"{100 * gap['value']:+.1f} [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"


def _entries(metrics: Mapping) -> Iterator[tuple[str, str, str, Mapping]]:
    """(source, language, method, what was scored of it)."""
    for method in NAMES:
        for source, own in metrics.get(method, {}).items():
            for language, entry in own.items():
                yield source, language, method, entry


def _without_translator(metrics: Mapping) -> Iterator[tuple[str, str, str]]:
    """(source, language, how its captions came about) of the languages that no packaged program translates from."""
    if TRANSLATE_FIRST not in metrics:
        return
    for source, own in metrics[ENCODER].items():
        for language, entry in own.items():
            if language != ENGLISH and language not in metrics[TRANSLATE_FIRST].get(source, {}):
                yield source, language, entry["how"]
