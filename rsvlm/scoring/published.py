"""Published figures, each with where it comes from and how sure it is, and which may be held against the study's own.

The figures stand in ``published.json``, on the publication's own scale. ``status`` says how a figure reached that file:
"read" in the publication or its code, "second-hand" in another publication's table, "recalled" and not verified since.
``kind`` keeps apart what must not be compared in one column: "specialist" (trained or fine-tuned on that benchmark
alone), "generalist" (one model for several benchmarks) and "zero-shot"; which is which is this study's reading where a
paper does not say so. Papers differ in metric code, splits and tokenisation: a difference in the second decimal says
nothing.

A comparison is fair between figures of the same test images, all of them; the same kind of model; the published
protocol; and a figure that was read, not recalled. "above" and "below" ask more than a difference: the study's whole
95 % interval lies on that side of the best comparable figure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rsvlm.files import read_json
from rsvlm.scoring.runs import RUNS, named

CAPTION_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
RECALLS = (
    *(f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    "mean_recall",
)
MAIN = {"captions": "CIDEr", "retrieval": "mean_recall"}
STATUSES = ("read", "second-hand", "recalled")
KINDS = ("specialist", "generalist", "zero-shot")
PER_UNIT = {"x1": 1, "x100": 100, "percent": 100}  # of a publication's scale: how much 1 of ours is there
TEST_IMAGES = {
    "ucm": 210, "sydney": 58, "rsicd_captioning": 1094, "rsicd_retrieval": 1093, "nwpu": 3150, "rsitmd": 452,
}  # fmt: skip
ALIASES = {"ucm_captions": "ucm", "sydney_captions": "sydney", "nwpu_captions": "nwpu", "rsicd": "rsicd_retrieval"}
# Test set -> where figures stand whose set is unknown
EITHER = {"rsicd_captioning": "rsicd", "rsicd_retrieval": "rsicd"}
TEST_SETS = ("", "stated", "inferred", "unknown")
ABOVE, LEVEL, BELOW = "above", "level", "below"
PUBLISHED_PROTOCOL = "remoteclip"


@dataclass(frozen=True)
class Published:
    """One model's figures on one benchmark, as fractions, CIDEr as pycocoevalcap gives it (3.55, not 355)."""

    task: str  # "captions" or "retrieval"
    source: str
    model: str
    kind: str
    status: str
    values: dict[str, float]
    unit: str  # the publication's own scale
    variant: str = ""
    note: str = ""
    test_set: str = ""  # how it is known on which of the benchmark's test sets; empty where there is only one
    weights: float | None = None  # that a caption takes: image encoder and language model, where both are known
    confirmed: tuple[str, ...] = ()  # metrics that a second source gives too, where the status is "recalled"

    def __post_init__(self) -> None:
        known = CAPTION_METRICS if self.task == "captions" else RECALLS
        if (
            self.kind not in KINDS
            or self.test_set not in TEST_SETS
            or self.status not in STATUSES
            or not set(self.values) <= set(known)
        ):
            raise ValueError(
                f"published figure of {self.model} on {self.source}: unknown kind, status, test set or metric"
            )

    def verified(self, metric: str) -> bool:
        """Whether the figure was read somewhere, and is not only recalled."""
        return metric in self.values and (self.status != "recalled" or metric in self.confirmed)

    @property
    def name(self) -> str:
        """The model with its variant, as tables show it."""
        return f"{self.model}, {self.variant}" if self.variant else self.model


def _on_our_scale(row: Mapping) -> Published:
    values = {metric: round(value / PER_UNIT[row["unit"]], 6) for metric, value in row["values"].items()}
    return Published(**row | {"values": values})


PUBLISHED = tuple(map(_on_our_scale, read_json(Path(__file__).with_name("published.json"))))


def published_for(task: str, source: str) -> list[Published]:
    """The published figures for a source: specialists, generalists, zero-shot, each by CIDEr or mean recall.

    None for a source without a literature.
    """
    name = benchmark_name(source)
    rows = [row for row in PUBLISHED if row.task == task and row.source in (name, EITHER.get(name))]
    return sorted(rows, key=lambda row: (KINDS.index(row.kind), -row.values.get(MAIN[task], -1.0)))


def benchmark_name(source: str) -> str:
    """The name under which the literature knows a source."""
    return ALIASES.get(source.lower(), source.lower())


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
    unfair = named(RUNS, name).unfair if task == "captions" else ""
    unread = None if row.verified(metric) else "recalled, not verified"
    return unfair or why_study_differs(metrics, task, source, row) or unread


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
    if row.test_set == "unknown":
        return "on which of the benchmark's two test sets is not known"
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
    names: dict[str, list[str]] = {}
    for row in published_for(task, source):
        reason = why_study_differs(metrics, task, source, row)
        if reason is None and not any(row.verified(metric) for metric in row.values):
            reason = "recalled, not verified"
        elif reason is None and MAIN[task] not in row.values:
            reason = f"gives no {MAIN[task]}; compared where it gives a figure"
        if reason:
            names.setdefault(reason, []).append(row.name)
    return [f"{reason}: {', '.join(models)}" for reason, models in names.items()]
