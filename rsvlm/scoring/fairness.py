"""Where one of this study's figures may be held against a published one, and how it stands there.

Fair means: the same test images, all of them; the same kind of model (one trained on that benchmark alone against its
like, one trained on several against its like); the published protocol; and a figure that was read, not recalled. Metric
code and tokenisation still differ between papers, so "above" and "below" ask more than a difference: the study's whole
95 % interval lies on that side of the best comparable figure.
"""

from collections.abc import Mapping

from rsvlm.scoring.published import TEST_IMAGES, Published, benchmark_name, published_for

ABOVE, LEVEL, BELOW = "above", "level", "below"
STANDINGS = (ABOVE, LEVEL, BELOW)
NEVER = {
    "human": "scored against one reference fewer",
    "shuffled": "shown wrong images on purpose",
}
PUBLISHED_PROTOCOL = "remoteclip"


def standing(metrics: Mapping, task: str, source: str, name: str, metric: str) -> str | None:
    """ "above", "level" or "below" the best published figure that may fairly be compared; None where there is none.

    Args:
        metrics: what ``study_metrics`` gives.
        task: "captions" or "retrieval".
        name: a run or method.
    """
    entry = metrics[task].get(name, {}).get(source, {}).get(metric, {})
    if entry.get("value") is None or entry.get("low") is None or entry.get("high") is None:
        return None
    fair = [
        row.values[metric]
        for row in published_for(task, source)
        if metric in row.values and why_not_fair(metrics, task, source, name, row, metric) is None
    ]
    if not fair:
        return None
    best = max(fair)
    return ABOVE if entry["low"] > best else BELOW if entry["high"] < best else LEVEL


def why_not_fair(metrics: Mapping, task: str, source: str, name: str, row: Published, metric: str) -> str | None:
    """Why a run's figure may not be held against this published one; None where it may."""
    if task == "captions" and name in NEVER:
        return NEVER[name]
    return why_study_differs(metrics, task, source, row) or (None if row.verified(metric) else "recalled, not verified")


def why_study_differs(metrics: Mapping, task: str, source: str, row: Published) -> str | None:
    """Why this study as a whole cannot be compared with a published row; None where it can."""
    protocol = metrics.get("protocol", {}).get(task, {})
    if protocol.get("split") != "test":
        return f"this study scored the split {protocol.get('split')!r}"
    wanted = TEST_IMAGES.get(benchmark_name(source))
    found = next((own[source][key].get("n") for own in metrics[task].values() if source in own
                  for key in ("CIDEr", "mean_recall") if key in own[source]), None)  # fmt: skip
    if found != wanted:
        return f"this study scored {found} of the benchmark's {wanted} test images"
    if task == "retrieval" and protocol.get("name") != PUBLISHED_PROTOCOL:
        return f"this study's protocol is {protocol.get('name', 'not recorded')!r}, not {PUBLISHED_PROTOCOL!r}"
    kind = study_kind(metrics)
    if kind is None:
        return "the record does not say what this study was trained on"
    return None if row.kind == kind else f"{row.kind}; this study is a {kind}"


def study_kind(metrics: Mapping) -> str | None:
    """ "specialist" for a study trained on one source, "generalist" for several; None where the record does not say.

    A source that only adapts the encoder counts.
    """
    sources = metrics.get("protocol", {}).get("captions", {}).get("sources")
    if not sources:
        return None
    trained = {name for name, entry in sources.items() if entry["training_images"] > 0}
    return "specialist" if len(trained | set(adapting_sources(metrics))) == 1 else "generalist"


def adapting_sources(metrics: Mapping) -> list[str]:
    """Sources of a recorded study that adapted the encoder and entered nothing else."""
    sources = metrics.get("parameters", {}).get("aggregate_data", {}).get("sources", [])
    return [source["name"] for source in sources if source.get("use") == "adapt"]


def unfair_notes(metrics: Mapping, task: str, source: str) -> list[str]:
    """One line a reason: the published models that no figure of this study was held against."""
    main = "CIDEr" if task == "captions" else "mean_recall"
    names: dict[str, list[str]] = {}
    for row in published_for(task, source):
        reason = why_study_differs(metrics, task, source, row)
        if reason is None and not any(row.verified(metric) for metric in row.values):
            reason = "recalled, not verified"
        elif reason is None and main not in row.values:
            reason = f"gives no {main}; compared where it gives a figure"
        if reason:
            names.setdefault(reason, []).append(row.name)
    return [f"{reason}: {', '.join(models)}" for reason, models in names.items()]
