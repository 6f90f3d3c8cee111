"""Captions and likelihoods of many images in shards: in this process or on a cluster, with the bits of one run over all.

Images go through the captioner in batches of like length. A shard is some whole batches of those that one run over all images
would see, so whoever computes it sees the same ones; what is drawn at random depends on the image's number. A shard's answers are a
file in ``cache_folder()`` until all are there: a killed run goes on behind them.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from rsvlm.cluster import Shard, Workers, map_shards, open_workers
from rsvlm.files import cache_folder, fingerprint_file, fingerprint_values, only_process, read_json, write_json
from rsvlm.models.capret import CapRet
from rsvlm.models.captioner import WEIGHTS, load_capret
from rsvlm.models.features import Features, load_features
from rsvlm.models.generation import (
    Prompted,
    beam_captions,
    caption_log_likelihoods,
    in_order_of_length,
    sample_captions,
)
from rsvlm.models.loading import use_threads
from rsvlm.progress import progress_told_to
from rsvlm.settings import Generation

IMAGES = 64  # of a shard, or a batch where that is more: what a kill loses
Model = tuple[CapRet, Features]


@dataclass(frozen=True)
class _Part:
    """Some images as they are asked about, in order of length, and where the answers go."""

    image_ids: list[str]
    prompt: str | list[str]
    near: list[list[str]] | None
    view: str
    batch_size: int
    numbers: list[int]
    candidates: list[list[str]]  # none: captions are made; else it is asked how likely they are
    file: Path

    def asked_of(self, captioner: CapRet, features: Features) -> Prompted:
        return Prompted(captioner, features, self.image_ids, self.prompt, self.near, self.view)


def decode_captions(
    asked: Prompted, generation: Generation, numbers: Sequence[int] | None, batch_size: int
) -> tuple[list[list[str]], list[list[str]] | None]:
    """For each image the captions of the beam search, and those drawn at random; None where none are."""
    limits = {"max_new_tokens": generation.max_new_tokens, "batch_size": batch_size}
    beams = beam_captions(asked, beams=generation.beams, length_penalty=generation.length_penalty, **limits)
    if not generation.samples:
        return beams, None
    how = {"samples": generation.samples, "temperature": generation.sample_temperature, "seed": generation.seed}
    return beams, sample_captions(asked, numbers=numbers, **how, **limits)


@dataclass(frozen=True)
class CaptionShards:
    """``decode_captions`` and ``caption_log_likelihoods`` in shards; ``open_shards`` makes it."""

    asked: Prompted
    scratch: Path
    workers: Workers | None

    def decode(
        self, generation: Generation, numbers: Sequence[int] | None, batch_size: int
    ) -> tuple[list[list[str]], list[list[str]] | None]:
        """As ``decode_captions``."""
        lengths = list(map(len, self.asked.prefixes))
        own = Generation.of(generation)
        found = self._answers(partial(_decode, own), "captions", lengths, batch_size, numbers, None, own.model_dump())
        drawn = [one["drawn"] for one in found]
        return [one["beams"] for one in found], drawn if generation.samples else None

    def log_likelihoods(self, candidates: Sequence[Sequence[str]], batch_size: int) -> list[np.ndarray]:
        """As ``caption_log_likelihoods``."""
        texts = self.asked.captioner.encode_text
        lengths = [
            len(prefix) + sum(map(len, texts(list(own)))) for prefix, own in zip(self.asked.prefixes, candidates)
        ]
        found = self._answers(_weigh, "likelihoods", lengths, batch_size, None, candidates, {})
        return [np.array(one, dtype=np.float64) for one in found]

    def _answers(
        self,
        work: Callable,
        what: str,
        lengths: Sequence[int],
        batch_size: int,
        numbers: Sequence[int] | None,
        candidates: Sequence[Sequence[str]] | None,
        how: dict,
    ) -> list:
        """What the work says of each image, in the images' order."""
        asked, order, many = self.asked, in_order_of_length(lengths), batch_size * max(1, IMAGES // batch_size)
        threads = torch.get_num_threads()
        shards, places_of = [], {}
        for start in range(0, len(order), many):
            places = order[start : start + many]
            part = {
                "image_ids": [asked.image_ids[place] for place in places],
                "prompt": asked.prompt if isinstance(asked.prompt, str) else [asked.prompt[place] for place in places],
                "near": None if asked.neighbours is None else [list(asked.neighbours[place]) for place in places],
                "view": asked.view,
                "batch_size": batch_size,
                "numbers": [place if numbers is None else int(numbers[place]) for place in places],
                "candidates": [] if candidates is None else [list(candidates[place]) for place in places],
            }
            seen = hashlib.sha256(np.ascontiguousarray(asked.features.pooled[asked.features.rows(part["image_ids"])]))
            key = fingerprint_values(what, how, part, seen.hexdigest(), threads)
            file = self.scratch / f"{key[:20]}.json"
            name = f"{what} of {part['image_ids'][0]} and {len(places) - 1} more"
            shards.append(Shard(name, _Part(file=file, **part), len(places), file))
            places_of[file] = places
        answers: list = [None] * len(order)
        work, model = partial(_write_answers, work, threads), (asked.captioner, asked.features)
        for shard, _ in map_shards(work, shards, self.workers, what=what, unit="img", model=model):
            for place, answer in zip(places_of[shard.file], read_json(shard.file), strict=True):
                answers[place] = answer
        return answers


@contextmanager
def open_shards(asked: Prompted, captioner_folder: Path, features_folder: Path) -> Iterator[CaptionShards]:
    """Shards over these images. Their files go when the block ends without an error.

    Args:
        asked: with the captioner as ``load_capret(captioner_folder)`` and the features as ``load_features`` gives them.

    Raises:
        rsvlm.files.InUse: another process captions the same images so; at once.
    """
    model = [asked.captioner.config, fingerprint_file(captioner_folder / WEIGHTS), asked.features.meta]
    key = fingerprint_values(*model, list(asked.image_ids))
    scratch = cache_folder() / f"captions_{key[:20]}"
    with only_process(scratch.with_suffix(".lock"), f"captioning these {len(asked.image_ids)} images"):
        device, dtype = asked.captioner.device.type, str(asked.captioner.language_model.dtype).removeprefix("torch.")
        load = partial(_load, Path(captioner_folder), Path(features_folder), device, dtype)
        with open_workers(lambda: load, gpu=device == "cuda") as workers:
            yield CaptionShards(asked, scratch, workers)
        shutil.rmtree(scratch, ignore_errors=True)


def _write_answers(
    work: Callable[[_Part, Prompted], list],
    threads: int,
    model: Model,
    parts: Iterable[_Part],
    tick: Callable[[int], object],
) -> Iterator[None]:
    """Write the file of each part, by what the work says of it."""
    torch.set_num_threads(threads)
    for part in parts:
        with progress_told_to(lambda *_: None):  # the bar is over shards
            answers = work(part, part.asked_of(*model))
        write_json(part.file, answers)
        tick(len(part.image_ids))
        yield


def _decode(generation: Generation, part: _Part, asked: Prompted) -> list:
    beams, drawn = decode_captions(asked, generation, part.numbers, part.batch_size)
    return [{"beams": own, "drawn": drawn[row] if drawn else []} for row, own in enumerate(beams)]


def _weigh(part: _Part, asked: Prompted) -> list:
    found = caption_log_likelihoods(asked, part.candidates, batch_size=part.batch_size)
    return [own.tolist() for own in found]


def _load(captioner: Path, features: Path, device: str, dtype: str, number: int) -> Model:
    use_threads(0)  # keeps the memory it frees; how many threads is each shard's to say
    if device == "cuda":
        device = f"cuda:{number % torch.cuda.device_count()}"
    read = load_features(features)
    return load_capret(captioner, device, features=read, dtype=dtype), read
