"""A trained captioner at work: on any images, with everything it needs in one folder.

A caption is chosen among the captioner's own candidates and its neighbours' captions by minimum Bayes risk (Kumar and
Byrne 2004): a candidate is worth its mean CIDEr to captions that are likely for the image. Two groups have a vote: the
captions of the nearest training images, weighted by nearness, and captions sampled from the captioner. Its
log-likelihood of the candidate is a third term, the cosine of image and candidate in the encoder's space a fourth. How
much each term counts is chosen on validation images.

The folder holds what ``rsvlm.models.captioner`` saves (trained weights, settings, fingerprints), and beside it
``memory.jsonl`` and ``memory.npy`` (captions and float16 vectors of the training images, for prompts and choice) and in
its config.json how images are encoded, how captions are generated, the chosen weights, and the distance from which on an
image counts as unlike anything in training: a captioner has an answer to every picture, also to those it knows nothing of.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from rsvlm.files import read_array, read_json, read_json_lines, write_array, write_json_lines, write_text
from rsvlm.kernels import similarity_topk
from rsvlm.models.capret import CapRet
from rsvlm.models.caption_shards import decode_captions, open_shards
from rsvlm.models.captioner import CONFIG, WEIGHTS, load_capret, save_capret
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.encoding import encode_texts
from rsvlm.models.features import Features, encode_pictures, encoding_of
from rsvlm.models.generation import Prompted, caption_log_likelihoods
from rsvlm.models.loading import choose_device
from rsvlm.models.neighbours import CiderSpace, Memory, Pools, pool_options
from rsvlm.models.pictures import Picture, read_blocks
from rsvlm.models.zoo import find_encoder, is_encoder
from rsvlm.safe_text import as_markdown
from rsvlm.settings import Generation

MEMORY_ROWS, MEMORY_VECTORS = "memory.jsonl", "memory.npy"
ENCODER_NEARBY = "../encoder"  # from a captioner's folder: where a study leaves the encoder
TERMS = ("pool", "samples", "likelihood", "cosine")
UNLIKE_PERCENTILE = (
    99  # of the validation images' distances to training: beyond, an image is unlike anything in training
)
Weights = dict[str, float]


@dataclass(frozen=True)
class Captioner:
    """A captioner with all that it needs; ``load_captioner`` makes one, ``caption`` uses it."""

    model: CapRet
    encoder: DualEncoder
    memory: Memory
    generation: Generation
    weights: Weights
    encoding: dict[str, object]  # views, grid, crops, precision, as the training features were made
    unlike_above: float | None = None  # cosine distance; None: the folder was saved without validation images

    @property
    def config(self) -> dict:
        """What config.json holds."""
        return self.model.config

    def encode(self, pictures: Iterable[Image.Image], names: Sequence[str], *, batch_size: int = 32) -> Features:
        """Features of pictures as those of the training images were made."""
        return encode_pictures(self.encoder, pictures, names, batch_size=batch_size, **self.encoding)

    def encode_captions(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) rows of length 1 of captions, encoded as the training captions were."""
        how = {"capitalise": self.config["encoding"].get("capitalise", True), "precision": self.encoding["precision"]}
        return encode_texts(self.encoder, texts, **how)

    def pools(self, vectors: np.ndarray, names: Sequence[str]) -> Pools:
        """The captions of the nearest training images, as in training."""
        return self.memory.pools(vectors, names, **pool_options(self.config["prompting"]))

    def is_unlike(self, distance: float) -> bool | None:
        """Whether an image so far from training is unlike anything in it; None where that was never measured."""
        return None if self.unlike_above is None else bool(distance > self.unlike_above)

    def warning(self, distance: float) -> str:
        """What to tell a person beside the caption of an image so far from training; mostly nothing."""
        if not self.is_unlike(distance):
            return ""
        return (
            "Unlike anything in training, so what is said of it is a guess (cosine distance to the nearest training image "
            f"{distance:.3f}; {UNLIKE_PERCENTILE} % of the validation images are within {self.unlike_above:.3f})."
        )


def training_distances(memory: Memory, vectors: np.ndarray) -> np.ndarray:
    """(n,) float64: the cosine distance (1 - cosine) of each vector (n, D) to the nearest training image's."""
    nearest, _ = similarity_topk(vectors, memory.vectors, 1)
    return np.maximum(0.0, np.round(1 - nearest[:, 0].cpu().numpy().astype(np.float64), 6))


def save_captioner(
    folder: Path,
    model: CapRet,
    memory: Memory,
    *,
    generation: Generation,
    weights: Weights,
    encoding: Mapping[str, object],
    validation: np.ndarray | None = None,
) -> None:
    """Write a captioner's folder with a model card (README.md), whole or not at all.

    Args:
        model: as it was trained, not merged (``load_capret(..., merge=False)``).
        encoding: ``Features.meta``'s views, grid, precision, capitalise and, where there are any, crops.
        validation: (n, D) vectors of the validation images: how far from training an image is that is still like it.
    """
    names = ["views", "grid", "precision", "capitalise", *(["crops"] if "crops" in encoding else [])]
    size = {"images": len(memory.captions), "captions": sum(map(len, memory.captions.values()))}
    more = {
        "encoder": ENCODER_NEARBY,
        "encoding": {name: encoding[name] for name in names},
        "generation": Generation.of(generation).model_dump(),
        "weights": dict(weights),
        "memory": size | {"megabytes": round(memory.vectors.nbytes / 1e6, 2)},
    }
    if validation is not None and len(validation):
        above = float(np.percentile(training_distances(memory, validation), UNLIKE_PERCENTILE))
        found = {"above": round(above, 6), "percentile": UNLIKE_PERCENTILE, "validation_images": len(validation)}
        more["unlike_training"] = found

    def write_memory(scratch: Path) -> None:
        rows = ({"image_id": image_id, "captions": own} for image_id, own in memory.captions.items())
        write_json_lines(scratch / MEMORY_ROWS, rows)
        write_array(scratch / MEMORY_VECTORS, memory.vectors.astype(np.float16))
        write_text(scratch / "README.md", model_card(model.config | more))

    save_capret(model, folder, beside=write_memory, **more)


def model_card(config: Mapping) -> str:
    """The card of a captioner's folder, from what its config.json holds."""
    memory, made = config["memory"], config["generation"]
    crops = {"auto": " (crops of large pictures)", "always": " (crops)"}.get(config["encoding"].get("crops"), "")
    terms = ", ".join(f"{name} {weight:g}" for name, weight in config["weights"].items())
    steps = f" for {config['kept_step']:,} steps" if config.get("kept_step") else ""
    unlike = config.get("unlike_training")
    limit = "not measured"
    if unlike:
        limit = (
            f"cosine distance to the nearest of them above {unlike['above']:g}, percentile {unlike['percentile']} of "
            f"{unlike['validation_images']:,} validation images; there the captions are guesses"
        )
    return f"""# A captioner for remote sensing images

RS-CapRet (a language model, a dual encoder, projections, `[RET]`), trained{steps} by rsvlm.

```
rsvlm caption THIS_FOLDER IMAGES --encoder ENCODER
```

| | |
|---|---|
| language model | {as_markdown(config["language_model"])}, fingerprint {config["language_model_fingerprint"][:12]}, not in this folder |
| encoder | fingerprint {str(config["encoder_fingerprint"])[:12]}, not in this folder; looked for in `{config["encoder"]}` |
| images are encoded | {config["encoding"]["views"]} views, a grid of {config["encoding"]["grid"]}{crops}, {config["encoding"]["precision"]} |
| captions are made | {made["beams"]} beams, {made["samples"]} draws, {made["pool_candidates"]} captions of like training images |
| one is chosen by | {terms} (chosen on validation images) |
| memory | {memory["images"]:,} training images with {memory["captions"]:,} captions, {memory["megabytes"]} MB |
| unlike them | {limit} |

The memory holds the training captions word for word: their licence is that of their data set. The captioner says what its
training images were said to show; it has seen no other sensor, scale or place, and its answers can be wrong.
"""


def load_captioner(
    folder: str | Path,
    encoder: DualEncoder | str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str | None = None,
) -> Captioner:
    """The captioner in a folder, ready to caption any image.

    Args:
        folder: what the stage generate_captions wrote, ``models/captioner`` of a study.
        encoder: the one it was trained with, loaded or by name; None: the folder ``encoder`` beside it.
        device: "auto", "cpu" or "cuda".
        dtype: of the frozen language model; None: as in training.

    Raises:
        FileNotFoundError: no captioner or no encoder there, or its language model cannot be found.
        ValueError: a damaged file, another encoder or language model than in training, or a captioner without memory.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, so there is no captioner; a study's is models/captioner")
    if not (folder / WEIGHTS).is_file() and is_encoder(folder):
        raise ValueError(
            f"{folder}: an encoder, and a captioner is needed: a folder with {WEIGHTS}, such as models/captioner of a study, "
            "beside which its encoder lies"
        )
    model = load_capret(folder, device, dtype=dtype)
    config, file = model.config, folder / CONFIG
    try:
        generation = Generation(
            **{name: value for name, value in config["generation"].items() if name in Generation.model_fields}
        )
        weights, encoding = config["weights"], encoding_of(config["encoding"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: {error} is missing: this captioner was trained but not finished; run the stage generate_captions, "
            "which writes models/captioner"
        ) from error
    if encoder is None:
        encoder = (folder / config.get("encoder", ENCODER_NEARBY)).resolve()
        if not encoder.is_dir():
            raise FileNotFoundError(f"{encoder}: no encoder beside the captioner; name the one it was trained with")
    encoder = find_encoder(folder, encoder, config["encoder_fingerprint"], str(choose_device(device)))
    unlike = config.get("unlike_training", {}).get("above")
    return Captioner(model, encoder, _read_memory(folder, encoder.embedding_dim), generation, weights, encoding, unlike)


@dataclass(frozen=True)
class Proposals:
    """What is proposed for some images before one caption each is chosen.

    Attributes:
        asked: the images as the captioner was asked about them.
        beams: the captions of the beam search, best first, for each image.
        own: those and the drawn ones, each once.
        candidates: those and the best of the neighbours' pool.
        judged: for each image term -> (candidates,), see ``judge_candidates``.
    """

    asked: Prompted
    beams: list[list[str]]
    own: list[list[str]]
    candidates: list[list[str]]
    judged: list[dict[str, np.ndarray]]


def caption(
    captioner: Captioner,
    images: Picture | Iterable[Picture],
    *,
    batch_size: int = 32,
    unreadable: str = "raise",
) -> pd.DataFrame:
    """A caption for each image.

    What is drawn at random for an image depends on its place in the list: a study's own list gives the study's captions.

    Args:
        images: paths of files, folders (all images in them, also deeper down), PIL images or arrays ((H, W) or
            (H, W, 3) uint8), or a list of such.
        batch_size: images at a time.
        unreadable: "raise" stops at a file that is no whole image; "keep" goes on, and its row says why.

    Returns:
        One row an image, in order: ``image`` (path, or "image 1" for what has no name), ``caption``,
        ``log_probability`` (natural, mean a token), ``distance`` (1 - cosine to the nearest training image),
        ``unlike_training`` (whether it is farther than almost all validation images: then the caption is a guess; None
        where a captioner does not know) and, with "keep", ``trouble``.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without an image.
        rsvlm.data.images.ImageError: a file that cannot be read as an image; names it.
        ValueError: an array of another shape or type.
    """
    rows: dict[int, dict] = {}  # by the image's number
    for block in read_blocks(images, unreadable):
        for number, (name, why) in block.troubles.items():
            rows[number] = {"image": name, "trouble": why}
        if not block.pictures:
            continue
        said = caption_pictures(captioner, block.pictures, block.names, numbers=block.numbers, batch_size=batch_size)
        rows |= dict(zip(block.numbers, said, strict=True))
    columns = ["image", "caption", "log_probability", "distance", "unlike_training"]
    columns += ["trouble"] if unreadable == "keep" else []
    return pd.DataFrame([rows[number] for number in sorted(rows)], columns=columns)


def caption_pictures(
    captioner: Captioner,
    pictures: Iterable[Image.Image],
    names: Sequence[str],
    *,
    numbers: Sequence[int] | None = None,
    batch_size: int = 32,
) -> list[dict]:
    """A row of ``caption`` for each RGB picture; they are looked at one after the other, and not kept.

    Args:
        numbers: as ``propose_captions`` takes them.
    """
    features = captioner.encode(pictures, names, batch_size=batch_size)
    proposed = propose_captions(
        captioner.model,
        features,
        names,
        captioner.pools(features.image_embeddings, names),
        captioner.generation,
        numbers=numbers,
        likelihoods=captioner.weights["likelihood"] > 0,
        encode_captions=captioner.encode_captions if captioner.weights.get("cosine") else None,
        batch_size=batch_size,
    )
    chosen = choose_captions(proposed.candidates, proposed.judged, captioner.weights)
    if captioner.weights["likelihood"] > 0:
        found = zip(chosen, proposed.candidates, proposed.judged, strict=True)
        likely = [judged["likelihood"][candidates.index(text)] for text, candidates, judged in found]
    else:  # it has no say in the choice: only what is put forward is asked for
        alone = [[text] for text in chosen]
        likely = [own[0] for own in caption_log_likelihoods(proposed.asked, alone, batch_size=batch_size)]
    far = training_distances(captioner.memory, features.image_embeddings).tolist()
    return [
        {"image": name, "caption": text, "log_probability": round(float(value), 6)}
        | {"distance": distance, "unlike_training": captioner.is_unlike(distance)}
        for name, text, value, distance in zip(names, chosen, likely, far, strict=True)
    ]


def propose_captions(
    model: CapRet,
    features: Features,
    image_ids: Sequence[str],
    pools: Pools,
    generation: Generation,
    *,
    numbers: Sequence[int] | None = None,
    likelihoods: bool = True,
    encode_captions: Callable[[Sequence[str]], np.ndarray] | None = None,
    batch_size: int = 32,
    folders: tuple[Path, Path] | None = None,
) -> Proposals:
    """Candidates for each image: a beam search and, where wanted, captions drawn at random, then the best of the
    neighbours' pool; and what each judge says of each of them.

    Args:
        numbers: of the images, in the whole list that they are part of; what is drawn depends on it. Default: from 0.
        likelihoods: ask the captioner's own likelihood, too; it takes a forward pass for each image.
        encode_captions: texts -> (n, D) rows of length 1 in the encoder's space; None: their cosine is not asked for.
        folders: of the captioner and of the features, as ``load_capret`` and ``load_features`` read them: the work is kept shard
            by shard, and goes to the machine's cluster (``rsvlm.models.caption_shards``). The answers are the same bits.
    """
    near = list(pools.top(model.config["prompting"]["neighbour_captions"]).values())
    asked = Prompted(model, features, image_ids, generation.prompt, near, generation.view)
    with ExitStack() as stack:
        shards = stack.enter_context(open_shards(asked, *folders)) if folders else None
        decode = shards.decode if shards else partial(decode_captions, asked)
        beams, drawn = decode(generation, numbers, batch_size)
        own = [list(dict.fromkeys([*beam, *(drawn[row] if drawn else [])])) for row, beam in enumerate(beams)]
        pooled = pools.top(generation.pool_candidates).values()
        candidates = [list(dict.fromkeys([*texts, *more])) for texts, more in zip(own, pooled, strict=True)]
        weigh = shards.log_likelihoods if shards else partial(caption_log_likelihoods, asked)
        likely = weigh(candidates, batch_size=max(1, batch_size // 4)) if likelihoods else None
    cosines = None
    if encode_captions is not None:
        cosines = caption_cosines(features.image_embeddings[features.rows(image_ids)], candidates, encode_captions)
    judged = judge_candidates(candidates, pools, samples=drawn, likelihoods=likely, cosines=cosines)
    return Proposals(asked, beams, own, candidates, judged)


def caption_cosines(
    vectors: np.ndarray, candidates: Sequence[Sequence[str]], encode_captions: Callable[[Sequence[str]], np.ndarray]
) -> list[np.ndarray]:
    """For each image (candidates,): the cosine of its vector (n, D), of length 1, and its candidates'."""
    texts = sorted({text for own in candidates for text in own})
    row_of, encoded = {text: row for row, text in enumerate(texts)}, encode_captions(texts)
    return [
        (encoded[[row_of[text] for text in own]] @ vector).astype(np.float64)
        for own, vector in zip(candidates, vectors, strict=True)
    ]


def judge_candidates(
    candidates: Sequence[Sequence[str]],
    pools: Pools,
    *,
    samples: Sequence[Sequence[str]] | None = None,
    likelihoods: Sequence[np.ndarray] | None = None,
    cosines: Sequence[np.ndarray] | None = None,
) -> list[dict[str, np.ndarray]]:
    """For each image a dict term -> (candidates,): what each term says of each candidate.

    ``pool`` and ``samples`` are mean CIDEr (0 to 10), ``likelihood`` (log-probability a token) and ``cosine`` are as
    given; a term that is not given is 0.
    """
    judged = []
    for row, own in enumerate(candidates):
        value_of = dict(pools.consensus(row, own))
        drawn = list(samples[row]) if samples is not None else []
        agreement = pools.memory.space.similarity(own, drawn).mean(1) if drawn else np.zeros(len(own))
        given = {}
        for name, values in (("likelihood", likelihoods), ("cosine", cosines)):
            given[name] = np.zeros(len(own)) if values is None else np.asarray(values[row], dtype=np.float64)
            if len(given[name]) != len(own):
                raise ValueError(f"{pools.image_ids[row]}: {len(own)} candidates, but {len(given[name])} {name}s")
        judged.append({"pool": np.array([value_of[text] for text in own]), "samples": agreement} | given)
    return judged


def choose_captions(
    candidates: Sequence[Sequence[str]], judged: Sequence[Mapping[str, np.ndarray]], weights: Weights
) -> list[str]:
    """For each image the candidate with the highest weighted sum of terms; among equals the first.

    Raises:
        ValueError: an image without candidates; names its number.
    """
    chosen = []
    for row, (own, terms) in enumerate(zip(candidates, judged, strict=True)):
        if not own:
            raise ValueError(f"image number {row} has no candidate captions")
        total = sum(weights.get(name, 0.0) * terms[name] for name in TERMS)
        chosen.append(own[int(np.argmax(np.round(total, 9)))])
    return chosen


def weight_grid(
    pool_weights: Sequence[float],
    sample_weights: Sequence[float],
    likelihood_weights: Sequence[float],
    cosine_weights: Sequence[float] = (0.0,),
) -> list[Weights]:
    """All combinations with a weight above 0, those with the fewest terms first.

    Raises:
        ValueError: a weight below 0, or nothing but zeros.
    """
    given = (pool_weights, sample_weights, likelihood_weights, cosine_weights)
    lists = [list(map(float, weights)) for weights in given]
    grid = [dict(zip(TERMS, weights)) for weights in product(*lists) if any(weights)]
    if not grid or min(min(weights) for weights in lists) < 0:
        raise ValueError(f"pool, sample, likelihood and cosine weights {lists}: expected numbers from 0, some above 0")
    return sorted(grid, key=lambda weights: sum(value > 0 for value in weights.values()))


def choose_weights(
    candidates: Sequence[Sequence[str]],
    judged: Sequence[Mapping[str, np.ndarray]],
    references: Sequence[Sequence[str]],
    space: CiderSpace,
    grid: Sequence[Weights],
) -> tuple[Weights, pd.DataFrame]:
    """(the weights whose choices have the highest mean CIDEr to the references, a table of all of them).

    CIDEr with the training captions' idf and plain words: close to, but not, the figure that is reported. Among equals
    the first of the grid wins.

    Raises:
        ValueError: no images.
    """
    if not candidates:
        raise ValueError("the split 'val' holds no image: there is nothing to choose the weights of the terms on")
    rows = []
    for weights in grid:
        chosen = choose_captions(candidates, judged, weights)
        rows.append({**weights, "cider": round(space.mean_cider(chosen, references), 6)})
    tried = pd.DataFrame(rows)
    return dict(grid[int(tried["cider"].argmax())]), tried


def _read_memory(folder: Path, width: int) -> Memory:
    remedy = "run the stage generate_captions again"
    for name in (MEMORY_ROWS, MEMORY_VECTORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing: {remedy}")
    rows = read_json_lines(folder / MEMORY_ROWS)
    try:
        captions = {row["image_id"]: list(row["captions"]) for row in rows}
        vectors = read_array(folder / MEMORY_VECTORS)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: its memory is damaged ({error}): {remedy}") from error
    if vectors.shape != (len(captions), width):
        raise ValueError(
            f"{folder / MEMORY_VECTORS}: shape {vectors.shape}, but {len(captions)} images and an encoder of width "
            f"{width} are expected: {remedy}"
        )
    return Memory(captions, vectors)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a captioner with everything that ``load_captioner`` needs."""
    file = Path(folder) / CONFIG
    return file.is_file() and "generation" in read_json(file)
