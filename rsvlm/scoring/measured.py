"""Other models measured beside a study, on its own images: an encoder, a captioner, or files made elsewhere.

measured = measure_model(entry, table, split="test", root=root)
metrics = score_model("remoteclip", measured, table, split="test", protocols=["texts_once"], tools=ScoringTools())
"""

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rsvlm.content_cache import ContentCache
from rsvlm.data.images import open_image
from rsvlm.data.packed import digest_of
from rsvlm.data.table import rows_of
from rsvlm.data.task_files import images_of
from rsvlm.files import cache_folder, whole_folder, write_json, write_json_lines
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.encoding import encode_texts
from rsvlm.models.feature_shards import encode_images
from rsvlm.models.features import encode_pictures
from rsvlm.models.loading import choose_device, choose_precision
from rsvlm.models.vlm import VisionLanguageModel, answer_pictures, caption_pictures, load_vlm
from rsvlm.models.zoo import PRESETS, load_encoder
from rsvlm.progress import Passing, log_line, progress
from rsvlm.safe_text import write_csv
from rsvlm.scoring.caption_study import score_study
from rsvlm.scoring.captions import ScoringTools
from rsvlm.scoring.foreign_files import read_foreign_captions, read_foreign_embeddings
from rsvlm.scoring.retrieval import EmbeddingSpace, retrieval_sets, save_space
from rsvlm.scoring.retrieval_study import find_protocols, score_methods, score_protocols, with_protocols
from rsvlm.scoring.runs import ABOUT, ANSWER_KEYS, ANSWERS, SCORES
from rsvlm.settings import OtherModel, VlmLoraSettings, VlmSettings
from rsvlm.training.contrastive import choose_activation
from rsvlm.training.vlm_lora import CaptionedPicture, train_vlm_lora

BLOCK = 32  # captions between two marks: what a kill loses
TIMED = 64  # images that the seconds an image are measured on
BEFORE = "what it was trained on before it was fine-tuned here is unknown"
NO_TEXTS = "vectors made elsewhere hold no other texts"


@dataclass(frozen=True)
class Measured:
    """What a model made of one split's images.

    Attributes:
        space: its vectors of images and of their captions; None: it has none.
        encode: from texts and whether to capitalise them to unit vectors (n, D); None: no other texts.
        captions: image_id -> caption; None: it says nothing.
        answers: what it says to tasks, each with task_id, image_id, instruction and answer; None: it was asked none.
        facts: what it is and what it cost, for the record.
    """

    space: EmbeddingSpace | None = None
    encode: Callable[[list[str], bool], np.ndarray] | None = None
    captions: dict[str, str] | None = None
    answers: list[dict] | None = None
    facts: dict = field(default_factory=dict)


def measure_model(
    entry: OtherModel,
    table: pd.DataFrame,
    *,
    split: str,
    root: Path,
    tasks: Sequence[Mapping] = (),
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    adapters: Path | None = None,
    checkpoints: Path | None = None,
    log: Callable[[str], None] = log_line,
) -> Measured:
    """What a model makes of the images of one split.

    Args:
        table: the caption table whole, with paths that can be opened.
        root: what the entry's relative paths start from.
        tasks: instructions about the table's images that a captioner answers, too, such as ``load_tasks`` gives.
        batch_size: images that an encoder takes at a time.
        adapters: folder for those of a captioner that is fine-tuned first; None: they are not kept.
        checkpoints: folder for that training's.

    Raises:
        FileNotFoundError, ValueError: the model or a file is not there, not whole, or does not fit the images.
    """
    rows = rows_of(table, split=split)
    space = encode = captions = answers = None
    facts = _training(entry)
    if entry.encoder:
        space, encode, own = _use_encoder(entry, table, rows, root, device, precision, batch_size, log)
        facts |= own
    if entry.embeddings:
        texts = sorted({text for captions_of in rows["captions"] for text in captions_of})
        found = read_foreign_embeddings(root / entry.embeddings, rows, texts)
        space = found
        facts["embeddings"] = _matching(found)
    if entry.captioner:
        captions, answers, own = _use_captioner(entry, table, rows, tasks, root, device, adapters, checkpoints, log)
        facts |= own
    if entry.captions:
        said = read_foreign_captions(root / entry.captions, rows)
        captions = said.captions
        facts["captions"] = _matching(said)
    return Measured(space, encode, captions, answers, facts)


def score_model(
    name: str,
    measured: Measured,
    table: pd.DataFrame,
    *,
    split: str,
    protocols: list[str],
    tools: ScoringTools,
    resamples: int = 1000,
    seed: int = 0,
    log: Callable[[str], None] = log_line,
) -> tuple[dict[str, dict], dict[str, pd.DataFrame]]:
    """({"retrieval", "captions": source -> entries, as the study's own stages score}, each image's scores by task).

    Raises:
        ValueError: an unknown protocol.
    """
    chosen, metrics, per_image = find_protocols(protocols), {}, {}
    if measured.space is not None:
        tests = retrieval_sets(table, split)
        labels = {image: label for image, label in zip(table["image_id"], table["label"]) if isinstance(label, str)}
        resampling = {"resamples": resamples, "seed": seed}
        report = score_methods({name: measured.space}, tests, labels=labels, **resampling)
        if measured.encode is None:
            skipped = [one.name for one in chosen if one.prefix or not one.capitalise]
            chosen = [one for one in chosen if one.name not in skipped]
            if skipped:
                log(f"{name}: not scored under {', '.join(skipped)}: {NO_TEXTS}")
        others = score_protocols(
            chosen, {name: measured.space}, tests, capitalised=True, encode=measured.encode, encoded=name, **resampling
        )
        metrics["retrieval"] = with_protocols({name: report.metrics[name]}, others)[name]
        per_image["retrieval"] = report.per_image
    if measured.captions is not None:
        source_of = dict(zip(table["image_id"], table["source"]))
        by_source: dict[str, dict[str, str]] = {}
        for image_id, caption in measured.captions.items():
            by_source.setdefault(source_of[image_id], {})[image_id] = caption
        scores = score_study(
            {name: by_source}, table, split=split, seed=seed, resamples=resamples, human_draws=0, tools=tools, log=log
        )
        metrics["captions"] = scores.metrics[name]
        per_image["captions"] = scores.per_image
    return metrics, per_image


def save_measurement(
    folder: Path,
    about: Mapping,
    measured: Measured,
    metrics: Mapping,
    per_image: Mapping[str, pd.DataFrame],
    adapters: Path | None = None,
) -> None:
    """Write all that was measured of a model into ``folder``, whole or not at all.

    Args:
        about: what it is and what it cost, as JSON values.
        metrics, per_image: what ``score_model`` gives.
        adapters: folder of those that were trained; None: none were.
    """
    with whole_folder(folder) as scratch:
        write_json(scratch / ABOUT, about)
        write_json(scratch / SCORES, metrics)
        for task, scores in per_image.items():
            write_csv(scratch / f"{task}.csv", scores, "%.6f")
        if measured.captions is not None:
            rows = ({"image_id": image_id, "caption": caption} for image_id, caption in measured.captions.items())
            write_json_lines(scratch / "captions.jsonl", rows)
        if measured.answers is not None:
            write_json_lines(scratch / ANSWERS, measured.answers)
        if measured.space is not None:
            save_space(measured.space, scratch / "embeddings")
        if adapters is not None:
            shutil.copytree(adapters, scratch / "adapters")


def peak_memory(device: torch.device) -> float:
    """The most memory that this process held so far, GB: of the GPU where it computes on one."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


def _use_encoder(
    entry: OtherModel,
    table: pd.DataFrame,
    rows: pd.DataFrame,
    root: Path,
    device: str,
    precision: str,
    batch_size: int,
    log: Callable[[str], None],
) -> tuple[EmbeddingSpace, Callable, dict]:
    """Vectors of the rows' images and captions, a function for other texts, and the encoder's facts."""
    where = choose_device(device)
    how = choose_precision(precision, where)
    encoder = load_encoder(
        _place(entry.encoder, root),
        where,
        image_size=entry.image_size,
        weights=entry.weights and root / entry.weights,
        quick_gelu=entry.quick_gelu,
    ).eval()
    tried = choose_activation(encoder, table, precision=how, log=log)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        made = encode_images(
            encoder, rows, Path(scratch) / "made", views=1, grid=0, batch_size=batch_size, precision=how, log=log
        )
        space = EmbeddingSpace(
            made.image_ids, np.array(made.image_embeddings), made.texts, np.array(made.text_embeddings)
        )
        fingerprint = made.meta["encoder_fingerprint"]
    facts = {
        "weights": sum(parameter.numel() for parameter in encoder.parameters()),
        "fingerprint": fingerprint,
        "image_size": encoder.image_size,
        "quick_gelu": getattr(encoder, "quick_gelu", None),
        "activations": tried,
        "precision": how,
        "device": str(where),
        "seconds_an_image": _time(encoder, rows, how, batch_size),
        "gigabytes": peak_memory(where),
    }
    return space, partial(_encode, encoder, how), facts


def _use_captioner(
    entry: OtherModel,
    table: pd.DataFrame,
    rows: pd.DataFrame,
    tasks: Sequence[Mapping],
    root: Path,
    device: str,
    adapters: Path | None,
    checkpoints: Path | None,
    log: Callable[[str], None],
) -> tuple[dict[str, str], list[dict] | None, dict]:
    """A caption of each row's image, answers to tasks, and the captioner's facts. A block that was made is kept."""
    settings = VlmSettings.of(entry)
    if (root / entry.captioner).is_dir():
        place = str(root / entry.captioner)
        told = {"captioner": place, "remote_code": place if entry.remote_code == entry.captioner else entry.remote_code}
        settings = settings.model_copy(update=told)
    vlm = load_vlm(settings, device, adapter=entry.adapter and root / entry.adapter)
    tuned = {}
    if entry.finetune is not None:
        lora = VlmLoraSettings.of_mapping(entry.finetune)
        learnt, held = (_captioned(table, split) for split in ("train", "val"))
        result = train_vlm_lora(vlm, learnt, held, lora, save_to=adapters, checkpoints=checkpoints, log=log)
        known = _training(entry)
        here = [f"{source}/train" for source in sorted(set(rows_of(table, split="train")["source"]))]
        tuned = {"trained_on": [*(known["trained_on"] or []), *here]}
        tuned["leaks"] = known["leaks"] if known["trained_on"] is not None else BEFORE
        tuned |= {
            "finetune": lora.model_dump()
            | {"kept_step": result.kept_step, "images": len(learnt), "validation": result.validation}
        }
    fingerprint, where = vlm.fingerprint(), vlm.model.device
    said, seconds = _caption(vlm, rows, fingerprint, log)
    answers = _answer(vlm, tasks, dict(zip(table["image_id"], table["path"])), fingerprint, log) if tasks else None
    facts = {
        "weights": vlm.parameters,
        "fingerprint": fingerprint,
        "prompt": vlm.prompt,
        "revision": getattr(vlm.model.config, "_commit_hash", None),
        "precision": str(vlm.model.dtype).removeprefix("torch."),
        "device": str(where),
        "seconds_an_image": seconds,
        "gigabytes": peak_memory(where),
    }
    return said, answers, facts | tuned | ({"tasks": len(tasks)} if tasks else {})


def _caption(
    vlm: VisionLanguageModel, rows: pd.DataFrame, fingerprint: str, log: Callable[[str], None]
) -> tuple[dict[str, str], float | None]:
    """(image_id -> caption, seconds an image over the images captioned now; None where all were kept from before)."""
    kind, said, made, spent = f"caption {fingerprint}", {}, 0, 0.0
    with (
        ContentCache(cache_folder() / "captions") as cache,
        progress(total=len(rows), unit="img", desc="captions") as bar,
    ):
        for start in range(0, len(rows), BLOCK):
            block = rows.iloc[start : start + BLOCK]
            contents = dict(zip(block["image_id"], (digest_of(Path(path)) for path in block["path"])))
            known = cache.find(kind, contents.values())
            new = [image_id for image_id, content in contents.items() if content not in known]
            if new:
                paths = dict(zip(block["image_id"], block["path"]))
                started = time.perf_counter()
                captions = caption_pictures(vlm, (open_image(paths[image_id]) for image_id in new))
                spent, made = spent + time.perf_counter() - started, made + len(new)
                known |= {contents[image_id]: caption for image_id, caption in zip(new, captions, strict=True)}
                cache.keep(kind, {contents[image_id]: known[contents[image_id]] for image_id in new})
            said |= {image_id: known[content] for image_id, content in contents.items()}
            bar.update(len(block))
    log(Passing(f"{len(said)} captions, {made} of them made now"))
    return said, round(spent / made, 4) if made else None


def _answer(
    vlm: VisionLanguageModel,
    tasks: Sequence[Mapping],
    paths: Mapping[str, str],
    fingerprint: str,
    log: Callable[[str], None],
) -> list[dict]:
    """A row a task, with ANSWER_KEYS. A block of answers that was given is kept, by the images' contents and the instruction."""
    kind, said, made = f"answer {fingerprint}", [], 0
    contents = {image_id: digest_of(Path(paths[image_id])) for task in tasks for image_id in images_of(task)}
    with (
        ContentCache(cache_folder() / "answers") as cache,
        progress(total=len(tasks), unit="task", desc="answers") as bar,
    ):
        for start in range(0, len(tasks), BLOCK):
            block = tasks[start : start + BLOCK]
            keys = ["\n".join([*(contents[one] for one in images_of(task)), task["instruction"]]) for task in block]
            known = cache.find(kind, keys)
            new = {key: task for key, task in zip(keys, block) if key not in known}
            if new:
                asked = [
                    ([open_image(paths[one]) for one in images_of(task)], task["instruction"]) for task in new.values()
                ]
                own = dict(zip(new, answer_pictures(vlm, asked), strict=True))
                cache.keep(kind, own)
                known, made = known | own, made + len(own)
            answered = [task | {"answer": known[key]} for key, task in zip(keys, block, strict=True)]
            said += [{key: task[key] for key in ANSWER_KEYS} for task in answered]
            bar.update(len(block))
    log(Passing(f"{len(said)} answers, {made} of them made now"))
    return said


def _captioned(table: pd.DataFrame, split: str) -> list[CaptionedPicture]:
    rows = rows_of(table, split=split)
    return [CaptionedPicture(Path(path), tuple(captions)) for path, captions in zip(rows["path"], rows["captions"])]


def _encode(encoder: DualEncoder, precision: str, texts: list[str], capitalise: bool = True) -> np.ndarray:
    return encode_texts(encoder, texts, capitalise=capitalise, precision=precision)


def _time(encoder: DualEncoder, rows: pd.DataFrame, precision: str, batch_size: int) -> float:
    """Seconds that an image takes, files read and decoded, over the first TIMED images once the encoder is warm."""
    paths = rows["path"].tolist()[:TIMED]
    started = time.perf_counter()
    encode_pictures(encoder, map(open_image, paths), paths, precision=precision, batch_size=batch_size)
    return round((time.perf_counter() - started) / len(paths), 5)


def _place(name: str, root: Path) -> str:
    """An encoder's name, a folder of the project as a whole path."""
    return str(root / name) if (root / name).is_dir() else name


def _training(entry: OtherModel) -> dict:
    """What a model was trained on, and what is known of leaks: as its entry says, else as its preset does."""
    preset = PRESETS.get(entry.encoder or "")
    trained_on = entry.trained_on
    if trained_on is None and preset is not None and preset.trained_on is not None:
        trained_on = list(preset.trained_on)
    return {"trained_on": trained_on, "leaks": preset.leaks if preset else ""}


def _matching(found: object) -> Mapping[str, object]:
    """How a file's names were matched to images, and what did not fit."""
    return {"how": found.how, "missing": len(found.missing), "unknown": len(found.unknown)}
