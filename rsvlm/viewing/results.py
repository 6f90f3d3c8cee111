"""What came out of a stage in a sentence or two, made of its metrics, as a box for the notebook: data and training.

Nothing is claimed that the numbers do not carry, and intervals stand where there are any. What is said of captions and
retrieval stands in ``score_results``.
"""

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scipy.stats import binomtest

BOX = "border-left:4px solid #0072B2;background:rgba(0,114,178,.09);padding:.7em 1em;margin:.5em 0;max-width:50em"


@dataclass(frozen=True)
class Result:
    """What came out, in plain words; shown as a box in a notebook."""

    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f'<div style="{BOX}"><strong>Result.</strong> {html.escape(self.text)}</div>'


def data_result(metrics: Mapping) -> Result:
    """What METRICS/aggregate_data.json says: how much there is to learn from, and what was found in it."""
    sources = metrics["sources"]
    images, captions = (
        {split: sum(own[kind].get(split, 0) for own in sources.values()) for split in ("train", "val", "test")}
        for kind in ("images_used", "captions_used")
    )
    lines = [
        f"{counted(sum(images.values()), 'image')} with {counted(sum(captions.values()), 'caption')} from "
        f"{listed(sorted(sources))}: {images['train']:,} to train on, {images['val']:,} to choose by, "
        f"{images['test']:,} to score."
    ]
    shared = metrics["pairs_of_near_duplicates_between_train_and_test"]
    dropped = metrics["near_duplicates_dropped_from_train"]
    found = f"{counted(shared, 'pair')} of near-duplicates between training and test" if shared else "No near-duplicate"
    lines.append(
        f"{found} {'were' if shared > 1 else 'was'} found{'' if shared else ' between training and test'}"
        + (f", and {counted(dropped, 'training image')} left out for it." if shared else ".")
    )
    searched = metrics["looked_for_same_ground"]
    if searched["switched_on"] and searched["images_too_small"]:
        lines.append(
            f"The search for the same ground at another zoom could not look at "
            f"{counted(searched['images_too_small'], 'image')}: too small."
        )
    faults = {"files missing": "files_missing", "images broken": "images_broken"}
    told = {what: sum(own.get(key, 0) for own in sources.values()) for what, key in faults.items()}
    lines += [f"{what.capitalize()}: {number:,}." for what, number in told.items() if number]
    return Result(" ".join(lines))


def encoder_result(metrics: Mapping) -> Result:
    """What METRICS/adapt_encoder.json says: recall and naming on validation images, before and after."""
    before, after, kept = metrics["before"], metrics["after"], metrics["best_epoch"]
    on = f"{counted(after['images'], 'validation image')} and their {counted(after['captions'], 'caption')}"
    if not metrics["epochs"]:
        lines = [f"The encoder was kept as it came: mean recall {percent(after['mean_recall'])} on {on}."]
    elif not kept:
        lines = [
            f"None of {counted(metrics['epochs'], 'epoch')} matched images and captions better than the encoder as it "
            f"came: mean recall {percent(after['mean_recall'])} on {on}."
        ]
    else:
        lines = [
            f"Mean recall on {on} went from {percent(before['mean_recall'])} to {percent(after['mean_recall'])} "
            f"(epoch {kept} of {metrics['epochs']} was kept, chosen on these same images)."
        ]
    naming = metrics["zero_shot"]
    if naming["before"] and naming["after"]:
        low, high = wilson_interval(naming["after"]["accuracy"], naming["after"]["images"])
        lines.append(
            f"The nearest prompt names the right class for {percent(naming['before']['accuracy'])} of "
            f"{counted(naming['after']['images'], 'image')} before and {percent(naming['after']['accuracy'])} after "
            f"(95 % interval {percent(low, high)}; by chance {percent(naming['after']['chance'])})."
        )
    return Result(" ".join(lines))


def features_result(metrics: Mapping) -> Result:
    """What METRICS/encode_images.json says: what lies on disk, and how often a neighbour is of the same class."""
    lines = [
        f"{counted(metrics['images'], 'image')} in {counted(metrics['views'], 'view')} and "
        f"{counted(metrics['captions'], 'different caption')} are now vectors of {metrics['embedding_dim']} numbers."
    ]
    alike = metrics.get("nearest_same_class")
    if alike:
        low, high = wilson_interval(alike["value"], alike["n"])
        lines.append(
            f"The training image nearest to a validation image is of its class for {percent(alike['value'])} of "
            f"{counted(alike['n'], 'image')} (95 % interval {percent(low, high)}; by chance {percent(alike['chance'])})."
        )
    return Result(" ".join(lines))


def training_result(metrics: Mapping) -> Result:
    """What METRICS/finetune_lora.json says: the caption loss before and after, and what was trained."""
    trained = f"{metrics['trainable_parameters'] / 1e6:.1f} million trained weights"
    words, measured = metrics.get("words"), metrics["validation"]
    lines = [f"With {trained}, step {metrics['kept_step']} of {metrics['steps']} was kept."]
    if measured:
        loss = measured["caption_loss"]
        lines.append(
            f"The loss of validation captions is {loss:.2f} nats a token there: on average as unsure as between "
            f"{math.exp(loss):.0f} tokens alike."
        )
    if words:
        known, other = words["in_prompt"], words["not_in_prompt"]
        lines.append(
            f"On {counted(words['images'], 'validation image')} it fell from {words['before']:.2f} to "
            f"{words['after']:.2f}; words that the neighbours' captions in the prompt hold cost {known:.2f}, all others "
            f"{other:.2f}."
        )
    reward = metrics.get("reward")
    if reward and reward["validation_cider"]["kept"] is not None:
        before, kept = (reward["validation_cider"][name] for name in ("before", "kept"))
        lines.append(
            f"Self-critical training moved the CIDEr of greedy captions of validation images from {before:.2f} to "
            f"{kept:.2f} (step {reward['kept_step']} of {reward['steps']}, the best on them)."
        )
    return Result(" ".join(lines))


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """(low, high): 95 % interval of a share of n (Wilson 1927); it stays within 0 and 1."""
    found = binomtest(round(share * n), n).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def counted(number: int, what: str) -> str:
    """The number with what it counts, in the plural where it is not one."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def percent(*shares: float) -> str:
    """One share in percent, or the two ends of an interval."""
    return f"{' to '.join(f'{100 * share:.1f}' for share in shares)} %"


def listed(words: Iterable[str]) -> str:
    """The words as English lists them."""
    words = list(words)
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
