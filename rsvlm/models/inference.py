"""A trained captioner at work: on any images, with everything it needs in one folder.

The folder holds what ``rsvlm.models.captioner`` saves (trained weights, settings, fingerprints), and beside it
``memory.jsonl`` and ``memory.npy`` (captions and float16 vectors of the training images, for prompts and choice) and in
its config.json how images are encoded, how captions are generated, and the chosen weights.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from tqdm import tqdm

from rsvlm.data.images import EXTENSIONS, ImageError, as_rgb, open_image
from rsvlm.files import read_json, read_json_lines, write_json_lines, write_text
from rsvlm.models.candidates import Memory, Pools, Weights, choose_captions, gather_candidates, judge_candidates
from rsvlm.models.capret import CapRet
from rsvlm.models.captioner import CONFIG, load_capret, save_capret
from rsvlm.models.devices import choose_device
from rsvlm.models.encoders import DualEncoder, load_encoder
from rsvlm.models.features import Features, encode_pictures
from rsvlm.models.generation import beam_captions, caption_log_likelihoods, sample_captions
from rsvlm.settings import Generation

MEMORY_ROWS, MEMORY_VECTORS = "memory.jsonl", "memory.npy"
ENCODER_NEARBY = "../encoder"  # from a captioner's folder: where a study leaves the encoder
A_BLOCK = 256  # images in memory at a time
Picture = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Proposals:
    """What is proposed for some images before one caption each is chosen.

    Attributes:
        beams: the captions of the beam search, best first, for each image.
        own: those and the drawn ones, each once.
        candidates: those and the best of the neighbours' pool.
        judged: for each image term -> (candidates,), see ``judge_candidates``.
    """

    beams: list[list[str]]
    own: list[list[str]]
    candidates: list[list[str]]
    judged: list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Captioner:
    """A captioner with all that it needs; ``load_captioner`` makes one, ``caption`` uses it."""

    model: CapRet
    encoder: DualEncoder
    memory: Memory
    generation: Generation
    weights: Weights
    encoding: dict[str, object]  # views, grid, precision, as the training features were made

    @property
    def config(self) -> dict:
        """What config.json holds."""
        return self.model.config

    def encode(self, pictures: Iterable[Image.Image], names: Sequence[str], *, batch_size: int = 32) -> Features:
        """Features of pictures as those of the training images were made."""
        return encode_pictures(self.encoder, pictures, names, batch_size=batch_size, **self.encoding)

    def pools(self, vectors: np.ndarray, names: Sequence[str]) -> Pools:
        """The captions of the nearest training images, as in training."""
        prompting = self.config["prompting"]
        return self.memory.pools(
            vectors, names, k=prompting["neighbours"], temperature=prompting["neighbour_temperature"]
        )


def save_captioner(
    folder: Path,
    model: CapRet,
    memory: Memory,
    *,
    generation: Generation,
    weights: Weights,
    encoding: Mapping[str, object],
) -> None:
    """Write a captioner's folder with a model card (README.md), whole or not at all.

    Args:
        model: as it was trained, not merged (``load_capret(..., merge=False)``).
        encoding: ``Features.meta``'s views, grid, precision and capitalise.
    """
    size = {"images": len(memory.captions), "captions": sum(map(len, memory.captions.values()))}
    more = {
        "encoder": ENCODER_NEARBY,
        "encoding": {name: encoding[name] for name in ("views", "grid", "precision", "capitalise")},
        "generation": Generation.of(generation).model_dump(),
        "weights": dict(weights),
        "memory": size | {"megabytes": round(memory.vectors.nbytes / 1e6, 2)},
    }

    def write_memory(scratch: Path) -> None:
        rows = [{"image_id": image_id, "captions": own} for image_id, own in memory.captions.items()]
        write_json_lines(scratch / MEMORY_ROWS, rows)
        np.save(scratch / MEMORY_VECTORS, memory.vectors.astype(np.float16))
        write_text(scratch / "README.md", model_card(model.config | more))

    save_capret(model, folder, beside=write_memory, **more)


def model_card(config: Mapping) -> str:
    """The card of a captioner's folder, from what its config.json holds."""
    memory, made = config["memory"], config["generation"]
    terms = ", ".join(f"{name} {weight:g}" for name, weight in config["weights"].items())
    steps = f" for {config['kept_step']:,} steps" if config.get("kept_step") else ""
    return f"""# A captioner for remote sensing images

RS-CapRet (a language model, a dual encoder, projections, `[RET]`), trained{steps} by rsvlm.

```
rsvlm caption THIS_FOLDER IMAGES --encoder ENCODER
```

| | |
|---|---|
| language model | {config["language_model"]}, fingerprint {config["language_model_fingerprint"][:12]}, not in this folder |
| encoder | fingerprint {str(config["encoder_fingerprint"])[:12]}, not in this folder; looked for in `{config["encoder"]}` |
| images are encoded | {config["encoding"]["views"]} views, a grid of {config["encoding"]["grid"]}, {config["encoding"]["precision"]} |
| captions are made | {made["beams"]} beams, {made["samples"]} draws, {made["pool_candidates"]} captions of like training images |
| one is chosen by | {terms} (chosen on validation images) |
| memory | {memory["images"]:,} training images with {memory["captions"]:,} captions, {memory["megabytes"]} MB |

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
    model = load_capret(folder, device, dtype=dtype)
    config, file = model.config, folder / CONFIG
    try:
        generation = Generation(
            **{name: value for name, value in config["generation"].items() if name in Generation.model_fields}
        )
        weights, encoding = config["weights"], {key: config["encoding"][key] for key in ("views", "grid", "precision")}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: {error} is missing: this captioner was trained but not finished; run the stage generate_captions, "
            "which writes models/captioner"
        ) from error
    encoder = _find_encoder(folder, encoder, config, str(choose_device(device)))
    return Captioner(model, encoder, _read_memory(folder, encoder.embedding_dim), generation, weights, encoding)


def propose_captions(
    model: CapRet,
    features: Features,
    image_ids: Sequence[str],
    pools: Pools,
    generation: Generation,
    *,
    likelihoods: bool = True,
    batch_size: int = 32,
) -> Proposals:
    """Candidates for each image: a beam search and, where wanted, captions drawn at random, then the best of the
    neighbours' pool; and what each judge says of each of them.

    Args:
        likelihoods: ask the captioner's own likelihood, too; it takes a forward pass for each image.
    """
    near = list(pools.top(model.config["prompting"]["neighbour_captions"]).values())
    given = {"prompt": generation.prompt, "neighbours": near, "view": generation.view}
    limits = {"max_new_tokens": generation.max_new_tokens, "batch_size": batch_size}
    beams = beam_captions(
        model,
        features,
        image_ids,
        beams=generation.beams,
        length_penalty=generation.length_penalty,
        **limits,
        **given,
    )
    drawn = None
    if generation.samples:
        drawn = sample_captions(
            model,
            features,
            image_ids,
            samples=generation.samples,
            temperature=generation.sample_temperature,
            seed=generation.seed,
            **limits,
            **given,
        )
    own = [list(dict.fromkeys([*beam, *(drawn[row] if drawn else [])])) for row, beam in enumerate(beams)]
    candidates = gather_candidates(own, pools, generation.pool_candidates)
    likely = None
    if likelihoods:
        likely = caption_log_likelihoods(
            model, features, image_ids, candidates, batch_size=max(1, batch_size // 4), **given
        )
    return Proposals(beams, own, candidates, judge_candidates(candidates, pools, samples=drawn, likelihoods=likely))


def caption(
    captioner: Captioner,
    images: Picture | Iterable[Picture],
    *,
    batch_size: int = 32,
    unreadable: str = "raise",
) -> pd.DataFrame:
    """A caption for each image.

    Args:
        images: paths of files, folders (all images in them, also deeper down), PIL images or arrays ((H, W) or
            (H, W, 3) uint8), or a list of such.
        batch_size: images at a time.
        unreadable: "raise" stops at a file that is no whole image; "keep" goes on, and its row says why.

    Returns:
        One row an image, in order: ``image`` (path, or "image 1" for what has no name), ``caption``,
        ``log_probability`` (natural, mean a token) and, with "keep", ``trouble``.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without an image.
        ImageError: a file that cannot be read as an image; names it.
        ValueError: an array of another shape or type.
    """
    rows = []
    for names, pictures, troubles in picture_blocks(list_images(images), unreadable):
        found = _caption_block(captioner, pictures, batch_size)
        rows += [found.get(name, {"image": name, "caption": None, "log_probability": None}) for name in names]
        if unreadable == "keep":
            for row in rows[len(rows) - len(names) :]:
                row["trouble"] = troubles.get(row["image"])
    columns = ["image", "caption", "log_probability"] + (["trouble"] if unreadable == "keep" else [])
    return pd.DataFrame(rows, columns=columns)


def list_images(images: Picture | Iterable[Picture]) -> list[tuple[str, Picture]]:
    """(name, image) of all images in what ``caption`` takes; folders are listed, nothing is opened.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without an image.
        ValueError: a name that comes twice.
    """
    listed: list[tuple[str, Picture]] = []
    given = [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else images
    for number, one in enumerate(given, start=1):
        if isinstance(one, Image.Image | np.ndarray):
            listed.append((f"image {number}", one))
            continue
        path = Path(one)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
            if not inside:
                raise FileNotFoundError(
                    f"{path}: no image in this folder; files that end in {', '.join(EXTENSIONS)} count"
                )
            listed += [(str(file), file) for file in inside]
        elif path.exists():
            listed.append((str(path), path))
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    names = [name for name, _ in listed]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice}: given twice")
    return listed


def read_picture(image: Picture) -> Image.Image:
    """An RGB image of a path, a PIL image or an array.

    A PIL image is turned by its EXIF orientation and put on white where it is transparent, as a file is.

    Raises:
        ImageError: a file that is no whole image.
        ValueError: an array that is none of (H, W) and (H, W, 3) uint8, or a PIL image of more than 8 bits.
    """
    if isinstance(image, Image.Image):
        if image.mode == "F" or image.mode.startswith("I"):
            raise ValueError(f"a PIL image of mode {image.mode!r}: expected 8 bits a band; scale it to 0..255")
        return as_rgb(ImageOps.exif_transpose(image), sixteen=False, masked=False)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise ValueError(
                f"an array of shape {image.shape} and type {image.dtype}: expected (height, width) or (height, width, 3) "
                "of uint8; choose three bands and scale them to 0..255"
            )
        return Image.fromarray(image).convert("RGB")
    return open_image(image)


def picture_blocks(
    listed: Sequence[tuple[str, Picture]], unreadable: str
) -> Iterator[tuple[list[str], list[tuple[str, Image.Image]], dict[str, str]]]:
    """(names, (name, picture) of what could be read, name -> why the others could not), A_BLOCK images at a time.

    Raises:
        ImageError: a file that is no whole image, where ``unreadable`` is "raise".
        ValueError: ``unreadable`` is neither "raise" nor "keep".
    """
    if unreadable not in ("raise", "keep"):
        raise ValueError(f"unreadable: {unreadable!r} is neither 'raise' nor 'keep'")
    bar = tqdm(total=len(listed), desc="images", mininterval=2, disable=len(listed) <= A_BLOCK)
    for start in range(0, len(listed), A_BLOCK):
        some = listed[start : start + A_BLOCK]
        pictures, troubles = [], {}
        for name, image in some:
            try:
                pictures.append((name, read_picture(image)))
            except ImageError as error:
                if unreadable == "raise":
                    raise
                troubles[name] = str(error)
        yield [name for name, _ in some], pictures, troubles
        bar.update(len(some))
    bar.close()


def _caption_block(captioner: Captioner, pictures: list[tuple[str, Image.Image]], batch_size: int) -> dict[str, dict]:
    """name -> its row, for the pictures of a block."""
    if not pictures:
        return {}
    names = [name for name, _ in pictures]
    features = captioner.encode((picture for _, picture in pictures), names, batch_size=batch_size)
    pools = captioner.pools(features.image_embeddings, names)
    model, made, votes = captioner.model, captioner.generation, captioner.weights["likelihood"] > 0
    proposed = propose_captions(model, features, names, pools, made, likelihoods=votes, batch_size=batch_size)
    chosen = choose_captions(proposed.candidates, proposed.judged, captioner.weights)
    if votes:
        likely = [
            judged["likelihood"][candidates.index(text)]
            for text, candidates, judged in zip(chosen, proposed.candidates, proposed.judged, strict=True)
        ]
    else:  # it has no say in the choice: only what is put forward is asked for
        near = list(pools.top(model.config["prompting"]["neighbour_captions"]).values())
        given = {"prompt": made.prompt, "neighbours": near, "view": made.view, "batch_size": batch_size}
        alone = [[text] for text in chosen]
        likely = [own[0] for own in caption_log_likelihoods(model, features, names, alone, **given)]
    return {
        name: {"image": name, "caption": text, "log_probability": round(float(value), 6)}
        for name, text, value in zip(names, chosen, likely, strict=True)
    }


def _find_encoder(folder: Path, encoder: DualEncoder | str | Path | None, config: Mapping, device: str) -> DualEncoder:
    """The encoder that a captioner was trained with."""
    if encoder is None:
        encoder = (folder / config.get("encoder", ENCODER_NEARBY)).resolve()
        if not encoder.is_dir():
            raise FileNotFoundError(f"{encoder}: no encoder beside the captioner; name the one it was trained with")
    if not isinstance(encoder, DualEncoder):
        encoder = load_encoder(str(encoder), device)
    found, wanted = encoder.fingerprint(), config["encoder_fingerprint"]
    if found != wanted:
        raise ValueError(
            f"{folder}: trained on features of the encoder {str(wanted)[:12]}, but {encoder.name} is {found[:12]}: give "
            "the encoder that lies beside the captioner"
        )
    return encoder


def _read_memory(folder: Path, width: int) -> Memory:
    remedy = "run the stage generate_captions again"
    for name in (MEMORY_ROWS, MEMORY_VECTORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing: {remedy}")
    rows = read_json_lines(folder / MEMORY_ROWS)
    try:
        captions = {row["image_id"]: list(row["captions"]) for row in rows}
        vectors = np.load(folder / MEMORY_VECTORS, allow_pickle=False)
    except (KeyError, TypeError, ValueError, EOFError) as error:
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
