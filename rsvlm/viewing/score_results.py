"""What came out of the stages that caption and score, in a sentence or two a source, as a box for the notebook.

A difference whose interval holds 0 is called open.
"""

from collections.abc import Mapping

from rsvlm.scoring.published import MAIN, standing
from rsvlm.scoring.runs import HUMAN, METHODS, RESERVED, RUNS, named
from rsvlm.viewing.results import Result, counted, listed, percent

OWN, LOOKS_AWAY = "captioner", "shuffled"
BASELINES = ("consensus", "nearest", "constant")


def generation_result(metrics: Mapping) -> Result:
    """What METRICS/generate_captions.json says: how the captions came about."""
    images, cider = metrics["images"], metrics["validation_cider"]
    best = max((run for run in BASELINES if run in cider), key=cider.get)
    lines = [
        f"{counted(metrics['distinct_captions'], 'different caption')} for {counted(sum(images.values()), 'image')}; "
        f"{percent(metrics['own_words'])} are among the captioner's own beams, the others are its choice among "
        "captions of similar training images.",
        f"On {counted(images['val'], 'validation image')}, by whose captions the choice was tuned, CIDEr is "
        f"{cider[OWN]:.2f}: {cider['beam']:.2f} for the captioner's first beam alone, {cider[LOOKS_AWAY]:.2f} when it "
        f"is shown wrong images, {cider[best]:.2f} for {_run(best)}, which needs no language model.",
    ]
    return Result(" ".join(lines))


def captions_result(metrics: Mapping) -> Result:
    """What METRICS/score_captions.json says, source by source: CIDEr, its interval, and the best baseline."""
    lines = []
    for source in sorted(metrics.get(OWN, {})):
        cider = {run: metrics[run][source]["released"]["CIDEr"] for run in metrics if _scored(metrics, run, source)}
        own, known = cider[OWN], [run for run in BASELINES if run in cider]
        line = f"{source}: CIDEr {own['value']:.2f} (95 % interval {own['low']:.2f} to {own['high']:.2f}) on {counted(own['n'], 'image')}"
        if known:
            best = max(known, key=lambda run: cider[run]["value"])
            difference = _difference(metrics["paired"].get(source, {}), OWN, best, "released")
            line += f", against {cider[best]['value']:.2f} for {_run(best)} ({_judged(difference)})"
        if LOOKS_AWAY in cider:
            line += f" and {cider[LOOKS_AWAY]['value']:.2f} when shown wrong images"
        if HUMAN in cider:
            line += f"; a held-out reference gets {cider[HUMAN]['value']:.2f}"
        lines.append(f"{line}.")
    return Result(" ".join(lines) or f"No captions of the run {OWN!r} were scored.")


def retrieval_result(metrics: Mapping) -> Result:
    """What METRICS/score_retrieval.json says, source by source: the best method, its interval, and the ceiling."""
    methods = [name for name in metrics if name not in RESERVED]
    lines = []
    for source in sorted({source for name in methods for source in metrics[name]}):
        recalls = {
            name: metrics[name][source]["by_image"]["mean_recall"] for name in methods if source in metrics[name]
        }
        best = max(recalls, key=lambda name: recalls[name]["value"])
        entry, ceiling = recalls[best], metrics[best][source]["ceiling"]["mean_recall"]["value"]
        others = [
            f"{named(METHODS, name).name} {100 * own['value']:.1f} %" for name, own in recalls.items() if name != best
        ]
        line = (
            f"{source}: mean recall {100 * entry['value']:.1f} % for {named(METHODS, best).name} (95 % interval "
            f"{percent(entry['low'], entry['high'])}) on {counted(entry['n'], 'image')}; {listed(others)}; "
            f"the ceiling {100 * ceiling:.1f} %"
        )
        if "combined" in recalls and "dual_encoder" in recalls:
            gain = _difference(metrics["paired"].get(source, {}), "combined", "dual_encoder", "mean_recall")
            line += f". What combining adds to the dual encoder: {_judged(gain, 100, ' points')}"
        if denied := metrics.get("negation", {}).get(source):
            line += (
                f". Of images with one thing, those without another one come first in {percent(denied['without']['value'])} of "
                f"pairs when the query says “without”, in {percent(denied['subtracted']['value'])} when the other thing's "
                "vector is subtracted (a half is chance)"
            )
        lines.append(f"{line}.")
    return Result(" ".join(lines))


def comparison_result(metrics: Mapping) -> Result:
    """What ``study_metrics`` says, source by source: where the study's figures stand beside published ones."""
    means = {"above": "above the best comparable figure", "below": "below it", "level": "not told apart from it"}
    figures = [("captions", OWN, "CIDEr", 1, 2, ""), ("retrieval", "combined", "mean recall", 100, 1, " %")]
    lines = []
    for source in sorted({source for task, name, *_ in figures for source in metrics[task].get(name, {})}):
        said = []
        for task, name, title, scale, digits, unit in figures:
            entry = metrics[task].get(name, {}).get(source, {}).get(MAIN[task])
            if not entry:
                continue
            stands = standing(metrics, task, source, name, MAIN[task])
            low, high = (f"{scale * entry[key]:.{digits}f}" for key in ("low", "high"))
            judged = f"published: {means[stands]}" if stands else "no published figure to be held against"
            said.append(f"{title} {scale * entry['value']:.{digits}f}{unit} ({low} to {high}; {judged})")
        lines.append(f"{source}: {listed(said)}.")
    return Result(" ".join(lines))


def _scored(metrics: Mapping, run: str, source: str) -> bool:
    if run in RESERVED:
        return False
    return metrics[run].get(source, {}).get("released", {}).get("CIDEr", {}).get("value") is not None


def _difference(pairs: Mapping, first: str, second: str, key: str) -> dict | None:
    """The measured difference of the first less the second, whichever way round the pair was written."""
    if own := pairs.get(f"{first} - {second}"):
        return own.get(key)
    if own := pairs.get(f"{second} - {first}", {}).get(key):
        return own | {"value": -own["value"], "low": -own["high"], "high": -own["low"]}
    return None


def _judged(difference: Mapping | None, scale: float = 1, unit: str = "") -> str:
    if difference is None:
        return "the difference was not measured"
    digits = 1 if scale > 1 else 2
    value, low, high = (
        f"{round(scale * difference[key], digits) + 0.0:+.{digits}f}" for key in ("value", "low", "high")
    )
    text = f"{value}{unit}, {low} to {high}"
    return f"{text}, so which is better is open" if difference["low"] <= 0 <= difference["high"] else text


def _run(run: str) -> str:
    return named(RUNS, run).name
