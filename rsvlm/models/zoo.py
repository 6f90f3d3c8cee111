"""Encoders by name: those out of packages, the field's published weights, open_clip's, Hugging Face's, folders.

``presets.json`` holds what is known of the field's weights: where they lie, which architecture and activation they want,
their licence, and what they were trained on, for the flags beside a score. ``rsvlm models list`` shows them, ``rsvlm models
get NAME`` fetches one; nothing else here uses the network on its own.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pandas as pd
import requests
import torch

from rsvlm.data.catalogue import DownloadError, fetch_file, unpack_safely
from rsvlm.files import cache_folder, fingerprint_file, read_json, write_json
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.hub_encoders import HubEncoder
from rsvlm.models.joined import MODEL_TYPE as JOINED
from rsvlm.models.joined import JoinedEncoder
from rsvlm.models.loading import first_line
from rsvlm.models.open_clip import CONFIG as OPEN_CLIP_CONFIG
from rsvlm.models.open_clip import FOLDER, HUB, PREFIX, load_open_clip
from rsvlm.models.packaged import MODEL_TYPE, PACKAGED, PackagedEncoder
from rsvlm.models.tiny import make_tiny_clip
from rsvlm.settings import MOST_MEMBERS, closest_name

RANDOM_CLIP = "random:clip"
RECORD = "downloads.json"  # beside a preset's weights: the checksum that the first download had


@dataclass(frozen=True)
class Preset:
    """Published weights. ``trained_on``: splits of captioned benchmarks; None where it could not be found out."""

    title: str
    cite: str
    encoder: str
    licence: str
    leaks: str
    trained_on: tuple[str, ...] | None = ()
    repository: str = ""
    revision: str = "main"
    url: str = ""
    file: str = ""
    bytes: int | None = None
    sha256: str | None = None
    quick_gelu: bool | None = None

    @property
    def address(self) -> str:
        """Where the file lies; for a whole repository, its name."""
        if self.url or not self.file:
            return self.url or self.repository
        return f"https://huggingface.co/{self.repository}/resolve/{self.revision}/{self.file}"


def _load_presets() -> dict[str, Preset]:
    facts = json.loads((files("rsvlm.models") / "presets.json").read_text(encoding="utf-8"))
    for own in facts.values():
        own["trained_on"] = None if own["trained_on"] is None else tuple(own["trained_on"])
    return {name: Preset(**own) for name, own in facts.items()}


PRESETS = _load_presets()


def load_encoder(
    name: str | Path,
    device: str | torch.device = "cpu",
    *,
    image_size: int | None = None,
    weights: str | Path | None = None,
    quick_gelu: bool | None = None,
) -> DualEncoder:
    """The encoder of that name on ``device``, in float32 and evaluation mode.

    Args:
        name: ``packaged:efficientnet-lite2-minilm``; ``random:clip`` (a tiny random CLIP for tests); a preset of ``rsvlm
            models list``; ``open_clip:ARCHITECTURE`` with ``weights``, ``open_clip:ARCHITECTURE/TAG``, ``hf-hub:OWNER/NAME``,
            ``local-dir:FOLDER`` (``rsvlm.models.open_clip``); a folder written by ``DualEncoder.save``, by Hugging Face
            or by open_clip; or a name on Hugging Face.
        image_size: side of the input in pixels; None takes the encoder's own.
        weights: a file of weights for ``open_clip:ARCHITECTURE``, or a preset's from another place than the cache.
        quick_gelu: whether the activation is QuickGELU; None: as the preset, the folder or the architecture says.

    Raises:
        FileNotFoundError: no such folder or file, and no such model in reach.
        ValueError: it is there, but not whole, or no dual encoder.
    """
    name, given = str(name), str(name)
    preset = PRESETS.get(name)
    if preset is not None:
        name = preset.encoder
        quick_gelu = preset.quick_gelu if quick_gelu is None else quick_gelu
        weights = weights or (preset_file(given) if preset.file else None)
    if name.startswith((PREFIX, HUB, FOLDER)) or (Path(name) / OPEN_CLIP_CONFIG).is_file():
        if Path(name).is_dir():
            name = f"{FOLDER}{name}"
        encoder = load_open_clip(name, weights=weights, quick_gelu=quick_gelu)
        if image_size not in (None, encoder.image_size):
            raise ValueError(
                f"image_size: {given} takes {encoder.image_size} pixels only, not {image_size}; leave it empty"
            )
    elif weights is not None:
        raise ValueError(
            f"weights: {given} brings its own; a file is for open_clip:ARCHITECTURE or a preset with a file"
        )
    elif name == PACKAGED:
        encoder = PackagedEncoder.from_packages(image_size)
    elif name == RANDOM_CLIP:
        with tempfile.TemporaryDirectory() as scratch:
            encoder = HubEncoder.from_name(str(make_tiny_clip(Path(scratch) / "clip")), image_size)
    elif name.startswith(("packaged:", "random:")):
        raise ValueError(f"encoder {name!r}: the built-in names are {PACKAGED!r} and {RANDOM_CLIP!r}")
    else:
        encoder = _load_folder_or_hub(name, image_size)
    encoder.name = given
    return encoder.to(device).eval()


def _load_folder_or_hub(name: str, image_size: int | None) -> DualEncoder:
    folder = Path(name)
    if folder.is_dir():
        config = folder / "config.json"
        if not config.is_file():
            raise FileNotFoundError(
                f"encoder folder {name}: no config.json in it (expected config.json, model.safetensors and a tokenizer)"
            )
        told = read_json(config)
        if "language_model" in told:
            raise ValueError(
                f"encoder {name}: a captioner, and an encoder is needed; that which it was trained with mostly lies beside it: "
                f"{folder.parent / 'encoder'}"
            )
        if told.get("model_type") == MODEL_TYPE:
            return PackagedEncoder.from_folder(folder, image_size)
        if told.get("model_type") == JOINED:
            return _load_joined(folder, told, image_size)
    elif folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or folder.exists():
        raise FileNotFoundError(f"encoder {name}: no such folder")
    elif "/" in name and folder.parent.is_dir():  # a slip in a path is no wish for the network
        raise FileNotFoundError(f"encoder {name}: no such folder in {folder.parent}")
    elif "/" not in name:
        raise FileNotFoundError(f"encoder {name}: no such folder, nor a preset{closest_name(name, PRESETS)}")
    return HubEncoder.from_name(name, image_size)


def _load_joined(folder: Path, told: dict, image_size: int | None) -> JoinedEncoder:
    members = told.get("members")
    if not isinstance(members, int) or not 2 <= members <= MOST_MEMBERS:
        raise ValueError(
            f"{folder / 'config.json'}: members is {members!r}, and a number from 2 to {MOST_MEMBERS} is needed"
        )
    return JoinedEncoder(str(folder), [load_encoder(folder / str(n), image_size=image_size) for n in range(members)])


def is_encoder(folder: Path) -> bool:
    """Whether a folder looks like an encoder's, saved here, by Hugging Face or by open_clip."""
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return True
    config = folder / "config.json"
    told = read_json(config) if config.is_file() else None
    return isinstance(told, dict) and (
        told.get("model_type") in (MODEL_TYPE, JOINED) or {"text_config", "vision_config"} <= told.keys()
    )


def preset_file(name: str) -> Path:
    """The file of a preset's weights in the cache.

    Raises:
        FileNotFoundError: it was not fetched.
    """
    preset = PRESETS[name]
    file = cache_folder() / "models" / name / preset.file
    if not file.is_file():
        raise FileNotFoundError(
            f"encoder {name}: its weights are not here. Where the network is: `rsvlm models get {name}`; or give the file "
            f"{Path(preset.file).name} of {preset.address} as `weights`"
        )
    return file


def get_model(name: str, log: Callable[[str], None] = print) -> Path:
    """The file or folder of a preset's weights, after it was fetched and checked; an interrupted download goes on.

    Raises:
        ValueError: no such preset; names the closest.
        DownloadError: no network, a server's error, a wrong checksum.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}{closest_name(name, PRESETS)}")
    preset = PRESETS[name]
    log(f"{preset.title} ({preset.cite}); licence: {preset.licence}")
    try:
        if not preset.file:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(preset.repository))
        folder = cache_folder() / "models" / name
        fetched = folder / (Path(preset.url).name if preset.url else preset.file)
        record_file = folder / RECORD
        record = read_json(record_file) if record_file.is_file() else {}
        expected = f"sha256:{preset.sha256}" if preset.sha256 else record.get(preset.file)
        fetch_file(preset.address, fetched, expected, log)
    except (requests.RequestException, OSError) as error:
        raise DownloadError(
            f"{preset.address}: not to be had ({first_line(error)}). Run `rsvlm models get {name}` again where the network "
            f"is, or fetch it by hand and give it as `weights`"
        ) from error
    if expected is None:
        write_json(record_file, record | {preset.file: f"sha256:{fingerprint_file(fetched)}"})
        log("no checksum is published; that of this download is recorded, and later ones must equal it")
    if fetched.suffix == ".zip":
        unpack_safely(fetched, folder)
    return preset_file(name)


def list_models() -> pd.DataFrame:
    """The presets: name, title, encoder, quick_gelu, trained_on, licence, address, megabytes, here (whether it was
    fetched), and leaks: what is known of test images among what it was trained on.
    """
    rows = []
    for name, preset in PRESETS.items():
        trained = "unknown" if preset.trained_on is None else ", ".join(preset.trained_on) or "no benchmark"
        here = (cache_folder() / "models" / name / preset.file).is_file() if preset.file else _in_hub_cache(preset)
        rows.append(
            {
                "name": name,
                "title": preset.title,
                "encoder": preset.encoder,
                "quick_gelu": {None: "tried", True: "yes", False: "no"}[preset.quick_gelu],
                "trained_on": trained,
                "licence": preset.licence,
                "address": preset.address,
                "megabytes": preset.bytes and round(preset.bytes / 1e6),
                "here": here,
                "leaks": preset.leaks,
            }
        )
    return pd.DataFrame(rows)


def _in_hub_cache(preset: Preset) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(
        isinstance(try_to_load_from_cache(preset.repository, file), str) for file in ("config.json", OPEN_CLIP_CONFIG)
    )


def find_encoder(
    place: Path, encoder: DualEncoder | str | Path | None, wanted: str, device: str, made_with: str | None = None
) -> DualEncoder:
    """The encoder that what lies in a file or folder was made with, loaded where it is named.

    Args:
        encoder: None: by the name ``made_with``.
        wanted: its fingerprint.
        made_with: the name that it had then, where that was written down.

    Raises:
        FileNotFoundError: it is not there under the name that it had.
        ValueError: another encoder.
    """
    if encoder is None:
        try:
            encoder = load_encoder(str(made_with), device)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{place}: made with the encoder {made_with}, which is not here under that name ({error}); tell where "
                "that encoder is now"
            ) from error
    elif not isinstance(encoder, DualEncoder):
        encoder = load_encoder(str(encoder), device)
    found = encoder.fingerprint()
    if found != wanted:
        own = f"{made_with}, fingerprint" if made_with else "fingerprint"
        raise ValueError(
            f"{place}: made with another encoder ({own} {str(wanted)[:12]}) than {encoder.name} (fingerprint "
            f"{found[:12]}), which is given: give the one it was made with"
        )
    return encoder
