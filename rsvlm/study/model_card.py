"""The model card of a study, made of what the study measured: ``python -m rsvlm.study.model_card``.

Sections as in Mitchell et al. (2019) and Hugging Face's model cards. Every number is read from the stages' metrics;
where a stage has none, the card says so.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from rsvlm.data.catalogue import KNOWN
from rsvlm.data.table import SPLITS
from rsvlm.files import read_json, write_text
from rsvlm.study import paths
from rsvlm.study.config import read_params

CAPTION_METRICS = ("CIDEr", "BLEU-4", "METEOR", "ROUGE_L")
RUNS = {
    "captioner": "this model",
    "beam": "its first beam alone",
    "consensus": "consensus of the nearest images' captions, no language model",
    "nearest": "nearest image's caption",
    "constant": "one constant caption",
    "shuffled": "this model, shown wrong images",
    "human": "one reference, held out",
}
METHODS = {
    "combined": "combined, weights chosen on validation",
    "dual_encoder": "dual encoder",
    "ret": "`[RET]`",
    "ceiling": "a model that knows every caption",
}


def model_card(metrics: Mapping, data: Mapping, params: Mapping) -> str:
    """The card as Markdown with a YAML head.

    Args:
        metrics: what ``reports/metrics.json`` holds.
        data: what ``reports/metrics/aggregate_data.json`` holds.
        params: the study's sections.

    Raises:
        ValueError: the metrics lack the captioner or their provenance.
    """
    for key in ("captions", "retrieval", "provenance"):
        if key not in metrics:
            raise ValueError(f"reports/metrics.json: has no {key!r}; run the stage compare_with_paper again")
    if "captioner" not in metrics["captions"]:
        raise ValueError("reports/metrics.json: has no scores of the captioner; run the stage score_captions again")
    made = metrics["provenance"]
    lines = [
        *_head(data),
        "# RS-CapRet as this study trained it",
        "",
        "A captioner and retriever of remote-sensing images: a language model with LoRA adapters, linear projections",
        "of a dual encoder's features, and a `[RET]` token. The method is that of *Large Language Models for",
        "Captioning and Retrieving Remote Sensing Images* (RS-CapRet). The study wrote this page itself.",
        "",
        "## Model details",
        "",
        *_details(params),
        f"- Code: commit {made.get('git_commit') or 'unknown'}; torch {made['packages'].get('torch', 'unknown')}, "
        f"transformers {made['packages'].get('transformers', 'unknown')}; trained on {made['device_name']}; seed "
        f"{made['seed']}.",
        "",
        "## Intended use",
        "",
        "Research on captioning and retrieving aerial and satellite images: comparing methods, reproducing figures,",
        "teaching. Not intended for decisions about people, places or property, for counting, for measuring, or for",
        "images from other sensors or resolutions than those below.",
        "",
        "## Training data",
        "",
        *_data(data),
        "",
        "## Evaluation",
        "",
        *_captions(metrics["captions"]),
        "",
        *_retrieval(metrics["retrieval"]),
        "",
        "CIDEr is on pycocoevalcap's scale over the whole test split, recalls are in percent, intervals are 95 %",
        "bootstrap intervals over test images. Everything was chosen on validation images.",
        "",
        "## Limitations",
        "",
        *_limits(metrics["captions"], data),
        "",
        "## Licence",
        "",
        "The code is Apache-2.0. Weights follow the licences of the models they were trained from and of the data; see",
        "the data cards of this study (`reports/cards`).",
    ]
    return "\n".join(lines) + "\n"


def _head(data: Mapping) -> list[str]:
    names = [f"- {name}" for name in sorted(data["sources"])]
    tags = ["- remote-sensing", "- image-captioning", "- image-text-retrieval"]
    return [
        "---",
        "language: en",
        "library_name: rsvlm",
        "pipeline_tag: image-to-text",
        "tags:",
        *tags,
        "datasets:",
        *names,
        "---",
        "",
    ]


def _details(params: Mapping) -> list[str]:
    encoder, tuning = params["adapt_encoder"], params["finetune_lora"]
    adapted = f"adapted for {encoder['epochs']} epochs" if encoder["epochs"] else "not adapted"
    lora = (
        f"LoRA of rank {tuning['lora_rank']} on {', '.join(tuning['lora_targets'])}"
        if tuning["lora_rank"]
        else "frozen"
    )
    return [
        f"- Encoder: `{encoder['encoder']}`, {adapted}, learning rates {encoder['image_lr']} (images), "
        f"{encoder['text_lr']} (text), batch {encoder['batch_size']}.",
        f"- Language model: `{tuning['language_model']}`, {lora}; retrieval space of {tuning['retrieval_dim']} "
        "dimensions.",
    ]


def _data(data: Mapping) -> list[str]:
    lines = ["| source | train | val | test | captions in training |", "|---|---|---|---|---|"]
    for name, facts in sorted(data["sources"].items()):
        title = KNOWN[name].title if name in KNOWN else name
        title += " (adapts the encoder alone)" if facts["adapts_encoder_alone"] else ""
        cells = " | ".join(f"{facts['images_used'][split]:,}" for split in SPLITS)
        lines.append(f"| {title} | {cells} | {facts['captions_used']['train']:,} |")
    dropped = data["near_duplicates_dropped_from_train"]
    return [*lines, "", f"{dropped:,} training images were left out because a test image shows the same."]


def _captions(captions: Mapping) -> list[str]:
    lines = []
    for source in sorted(captions["captioner"]):
        lines += [
            f"### Captions of {source}",
            "",
            f"| | {' | '.join(CAPTION_METRICS)} |",
            f"|---{'|---' * len(CAPTION_METRICS)}|",
        ]
        for run, words in RUNS.items():
            scores = captions.get(run, {}).get(source)
            if scores:
                cells = " | ".join(_figure(scores.get(metric), 1, 3, metric == "CIDEr") for metric in CAPTION_METRICS)
                lines.append(f"| {words} | {cells} |")
        lines += ["", f"{captions['captioner'][source]['CIDEr']['n']:,} test images.", ""]
    return lines[:-1]


def _retrieval(retrieval: Mapping) -> list[str]:
    sources = sorted({source for by_source in retrieval.values() for source in by_source})
    lines = []
    for source in sources:
        lines += [
            f"### Retrieval on {source}",
            "",
            "| | mean recall | image to text R@1 | text to image R@1 |",
            "|---|---|---|---|",
        ]
        for method, words in METHODS.items():
            scores = retrieval.get(method, {}).get(source)
            if scores:
                cells = " | ".join(
                    _figure(scores.get(key), 100, 1, key == "mean_recall")
                    for key in ("mean_recall", "image_to_text_recall_at_1", "text_to_image_recall_at_1")
                )
                lines.append(f"| {words} | {cells} |")
        lines.append("")
    return lines[:-1] if lines else ["No retrieval was scored."]


def _limits(captions: Mapping, data: Mapping) -> list[str]:
    """What the numbers themselves say against the model, and what is known of its data."""
    lines = []
    for source, scores in sorted(captions["captioner"].items()):
        own, other = scores["CIDEr"], captions.get("consensus", {}).get(source, {}).get("CIDEr")
        if other and None not in (own["low"], other["high"]) and own["low"] <= other["high"]:
            lines.append(
                f"- On {source} the model is not clearly above a consensus of its neighbours' captions, which needs no "
                f"language model (CIDEr {_figure(own, 1, 2, True)} against {_figure(other, 1, 2, True)})."
            )
        wrong = captions.get("shuffled", {}).get(source, {}).get("CIDEr")
        if wrong and wrong["value"] is not None:
            lines.append(
                f"- Shown the wrong image it still scores {wrong['value']:.2f} on {source}: so much comes without "
                "looking."
            )
    for name in sorted(data["sources"]):
        if name in KNOWN:
            lines.append(f"- {KNOWN[name].title}: {KNOWN[name].area}; resolution {KNOWN[name].resolution}.")
    lines.append("- One seed. Captions repeat the errors and habits of the captions it was trained on.")
    return lines


def _figure(score: Mapping | None, factor: float, digits: int, interval: bool) -> str:
    if not score or score.get("value") is None:
        return "-"
    text = f"{factor * score['value']:.{digits}f}"
    if interval and score.get("low") is not None and score.get("high") is not None:
        text += f" [{factor * score['low']:.{digits}f}, {factor * score['high']:.{digits}f}]"
    return text


def main(card: Path | None = None) -> int:
    """Write the card of the study in place."""
    try:
        metrics, data = read_json(paths.REPORTS / "metrics.json"), read_json(paths.METRICS / "aggregate_data.json")
        write_text(card or paths.REPORTS / "model_card.md", model_card(metrics, data, read_params(paths.PARAMS)))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
