"""open_clip's dual encoders: by architecture with weights from a file, by folder, from the hub, or by a pretrained tag.

    load_open_clip("open_clip:ViT-B-32", weights="RemoteCLIP-ViT-B-32.pt")
    load_open_clip("hf-hub:joaodaniel/RS-M-CLIP")
    load_open_clip("local-dir:/models/my_clip")          # open_clip_config.json and weights, as open_clip saves them
    load_open_clip("open_clip:ViT-B-32/laion2b_s34b_b79k")

The architectures, tokenizers and preprocessing are open_clip's (Ilharco et al. 2021); reading the weights is not: a pickle
is read as tensors alone (``weights_only``), and each weight that is missing, left over, misshapen or no number is an error.

Which activation a checkpoint wants is not written in it. OpenAI's weights, and all that was tuned from them, want
QuickGELU; an architecture's plain name builds GELU, and weights loaded by path into it lose some of their recall in silence
(open_clip issues 771, 915). ``quick_gelu`` says it; ``adapt_encoder`` tries both on validation images where it is not said.
"""

import pickle
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rsvlm.extras import import_extra
from rsvlm.files import read_json, write_json
from rsvlm.models.encoders import DualEncoder, Preprocessing, as_map, pool_cells
from rsvlm.models.loading import (
    REMEDY,
    check_names,
    first_line,
    first_not_finite,
    load_config,
    load_tokenizer,
    read_weights,
)
from rsvlm.settings import closest_name

PREFIX, HUB, FOLDER = "open_clip:", "hf-hub:", "local-dir:"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TEXT_CONFIG = "text"  # folder beside them: the configuration of a text tower that is Hugging Face's
ON_THE_HUB = (WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")  # in order of preference
WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts put the weights
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile and Lightning
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # what OpenAI's own files hold beside them


def import_open_clip() -> ModuleType:
    """The package open_clip. ModuleNotFoundError where it is not installed; says how."""
    return import_extra("open_clip", "an encoder of open_clip")


class OpenClipEncoder(DualEncoder):
    """A model of open_clip with its tokenizer.

    An image's pooled features are those before the last projection (ViT), or the embedding itself where the tower has no
    linear projection of its own (ResNet's attention pooling, timm's heads); then ``project_images`` changes nothing.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer,
        model_cfg: Mapping,
        preprocess_cfg: Mapping,
        *,
        activation_known: bool = True,
    ):
        """``activation_known``: whether somebody said which activation the weights want, see the module's head."""
        visual = model.visual
        self._matrix = isinstance(getattr(visual, "proj", None), Tensor)
        D = model_cfg["embed_dim"]
        super().__init__(name, _preprocessing(preprocess_cfg, name), visual.proj.shape[0] if self._matrix else D, D)
        self.model, self.tokenizer = model, tokenizer
        self.model_cfg, self.preprocess_cfg = deepcopy(dict(model_cfg)), dict(preprocess_cfg)
        self.activation_known = activation_known

    @property
    def quick_gelu(self) -> bool:
        """Whether the activation is QuickGELU."""
        return bool(self.model_cfg.get("quick_gelu", False))

    def use_quick_gelu(self, quick_gelu: bool) -> None:
        """Change the activation of both towers' blocks to QuickGELU, or to GELU."""
        open_clip = import_open_clip()
        kinds = (open_clip.transformer.QuickGELU, nn.GELU)
        for block in (
            module for module in self.modules() if isinstance(module, open_clip.transformer.ResidualAttentionBlock)
        ):
            if isinstance(block.mlp.gelu, kinds):
                block.mlp.gelu = kinds[0 if quick_gelu else 1]()
        self.model_cfg["quick_gelu"] = quick_gelu

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.model.logit_scale

    @property
    def image_tower(self) -> nn.Module:
        return self.model.visual

    @property
    def text_tower(self) -> nn.Module:
        if hasattr(self.model, "text"):
            return self.model.text
        own = self.model
        return nn.ModuleList([own.transformer, own.token_embedding, own.ln_final, _holding(own.positional_embedding)])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        projections = [self.model.visual.proj] if self._matrix else []
        if hasattr(self.model, "text"):
            of_text = [getattr(self.model.text, name, None) for name in ("text_projection", "proj")]
            projections += [p for part in of_text for p in ([part] if isinstance(part, nn.Parameter) else _parts(part))]
        apart = {id(parameter) for parameter in projections}
        groups = super().parameter_groups()
        towers = {name: [p for p in groups[name] if id(p) not in apart] for name in ("image", "text")}
        return towers | {"projection": projections + groups["projection"]}

    def train(self, mode: bool = True) -> "OpenClipEncoder":
        """Batch norms keep the statistics they were trained with: a batch of fine-tuning is too small for its own."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def image_features(self, pixel_values: Tensor, grid: int = 0) -> tuple[Tensor, Tensor | None]:
        visual = self.model.visual
        if self._matrix:
            hidden = visual.transformer(visual._embeds(pixel_values))
            pooled, tokens = visual._pool(hidden)
            return pooled, _cells(tokens if visual.attn_pool is None else None, grid, self.name)
        if hasattr(visual, "attnpool"):
            features = visual.stem(pixel_values)
            for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
                features = layer(features)
            if not grid:
                return visual.attnpool(features), None
            # Each place as the attention pooling would take it alone (Zhou et al. 2022, MaskCLIP)
            pool, places = visual.attnpool, features.flatten(2).transpose(1, 2)
            return visual.attnpool(features), _cells(pool.c_proj(pool.v_proj(places)), grid, self.name)
        return visual(pixel_values), _cells(None, grid, self.name)

    def project_images(self, pooled: Tensor) -> Tensor:
        return pooled @ self.model.visual.proj if self._matrix else pooled

    def text_features(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(texts).to(self.device))

    def image_blocks(self) -> list[list[nn.Module]]:
        visual = self.model.visual
        if hasattr(visual, "attnpool"):
            names = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
            layers = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
            return [[getattr(visual, name) for name in names], *([layer] for layer in layers)]
        if self._matrix:
            stem = [visual.conv1, visual.ln_pre, _holding(visual.class_embedding, visual.positional_embedding)]
            return [stem, *([block] for block in visual.transformer.resblocks)]
        trunk = visual.trunk
        blocks = list(getattr(trunk, "blocks", None) or getattr(trunk, "stages", None) or ())
        inside = {id(parameter) for block in blocks for parameter in block.parameters()}
        return [[_holding(*(p for p in trunk.parameters() if id(p) not in inside))], *([block] for block in blocks)]

    def _beside_weights(self) -> list:
        return [self.quick_gelu]

    def _save_into(self, folder: Path) -> None:
        """As open_clip's ``local-dir:`` reads it, with the tokenizer and a text tower's own configuration beside."""
        weights = {key: value.detach().cpu().contiguous() for key, value in sorted(self.model.state_dict().items())}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        own = deepcopy(self.model_cfg)
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(folder)
            own["text_cfg"]["hf_tokenizer_name"] = "."
        if "hf_model_name" in own["text_cfg"]:
            self.model.text.config.save_pretrained(folder / TEXT_CONFIG)
            own["text_cfg"]["hf_model_name"] = TEXT_CONFIG
        write_json(folder / CONFIG, {"model_cfg": own, "preprocess_cfg": self.preprocess_cfg})


def load_open_clip(name: str, *, weights: str | Path | None = None, quick_gelu: bool | None = None) -> OpenClipEncoder:
    """The encoder of that name, in float32.

    Args:
        name: ``open_clip:ARCHITECTURE`` with ``weights``, ``open_clip:ARCHITECTURE/TAG``, ``hf-hub:OWNER/NAME`` or
            ``local-dir:FOLDER``.
        weights: a .pt, .bin, .ckpt or .safetensors file.
        quick_gelu: the activation is QuickGELU, or GELU; None: what the architecture's or the folder's configuration says.

    Raises:
        FileNotFoundError: no such file, folder, or model in reach.
        ValueError: an unknown architecture or tag, weights of another one, a pickle that asks for code, a torn file.
    """
    open_clip = import_open_clip()
    what = f"encoder {name}"
    if name.startswith(PREFIX):
        architecture, _, tag = name.removeprefix(PREFIX).partition("/")
        model_cfg = open_clip.get_model_config(architecture)
        if model_cfg is None:
            raise ValueError(f"{what}: open_clip has no architecture {architecture!r}{_closest(architecture)}")
        if bool(tag) == bool(weights):
            raise ValueError(
                f"{what}: its weights are " + ("named twice, by tag and by file" if tag else "not named") + ": give "
                "`weights`, a file, or a tag behind the architecture, as in open_clip:ViT-B-32/laion2b_s34b_b79k"
            )
        preprocess_cfg, file = {}, weights
        if tag:
            preprocess_cfg, file = _fetch_tag(open_clip, architecture, tag, what)
            quick_gelu = preprocess_cfg.get("quick_gelu", False) if quick_gelu is None else quick_gelu
        tokenizer_of = architecture
    else:
        if weights:
            raise ValueError(f"{what}: it brings its own weights; `weights` is for open_clip:ARCHITECTURE")
        folder = Path(name.removeprefix(FOLDER)) if name.startswith(FOLDER) else _fetch_folder(name, what)
        model_cfg, preprocess_cfg, file = _read_folder(folder, what)
        tokenizer_of = f"{FOLDER}{folder}"
    if not Path(file).is_file():
        raise FileNotFoundError(f"{what}: weights: {file}: no such file")
    if quick_gelu is not None:
        model_cfg["quick_gelu"] = quick_gelu
    model = _build(open_clip, model_cfg, what)
    tensors = read_checkpoint(Path(file), what)
    _fill(open_clip, model, tensors, Path(file), what)
    made = (
        name,
        model.float(),
        _tokenizer(open_clip, tokenizer_of, model_cfg, what),
        model_cfg,
        _complete(preprocess_cfg, model),
    )
    known = not weights or quick_gelu is not None or "quick_gelu" in model_cfg
    return OpenClipEncoder(*made, activation_known=known)


def read_checkpoint(path: Path, what: str) -> dict[str, Tensor]:
    """The weights in a file by their names in open_clip, in float32, without what training scripts wrap around them.

    Raises:
        ValueError: a pickle that asks for code, a torn file, no weights in it, or a value that is no number.
    """
    if path.suffix == ".safetensors":
        found = read_weights(path, REMEDY)
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise ValueError(
                f"{what}: {path}: refused: a pickle that asks for {asked[1]} to be run when it is read; only tensors are read "
                "from a .pt file. Where you trust its source, save its weights as safetensors"
                if asked
                else f"{what}: {path}: neither a whole checkpoint nor a pickle of tensors alone, {path.stat().st_size:,} bytes "
                f"are there: {REMEDY}"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            raise ValueError(
                f"{what}: {path}: no whole checkpoint, {path.stat().st_size:,} bytes are there ({first_line(error)}): {REMEDY}"
            ) from error
    while isinstance(found, Mapping) and any(isinstance(found.get(key), Mapping) for key in WRAPPERS):
        found = next(found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping))
    tensors = (
        {key: value for key, value in found.items() if key not in NOT_WEIGHTS} if isinstance(found, Mapping) else {}
    )
    strangers = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
    if not tensors or strangers:
        raise ValueError(
            f"{what}: {path}: no weights by name in it"
            + (f": {strangers[0]!r} is {type(tensors[strangers[0]]).__name__}" if strangers else "")
        )
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    bad = first_not_finite(tensors)
    if bad:
        raise ValueError(f"{what}: {path}: {bad} holds NaN or infinity: {REMEDY}")
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def likely_architectures(tensors: Mapping[str, Tensor]) -> list[str]:
    """The architectures of open_clip whose towers have the widths, depths and patches of these weights."""
    open_clip, found = import_open_clip(), _shape_of(tensors)
    if found is None:
        return []
    names = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        if isinstance(vision.get("layers"), list):
            own = (config["embed_dim"], tuple(vision["layers"]), vision["width"], None, None)
        else:
            side = vision.get("image_size", 224)
            own = (
                config["embed_dim"],
                vision.get("layers"),
                vision.get("width"),
                vision.get("patch_size"),
                side // vision["patch_size"] if vision.get("patch_size") and isinstance(side, int) else None,
            )
        if own == found[0] and (text.get("width"), text.get("layers")) == found[1] and not config.get("quick_gelu"):
            names.append(name)
    return names


def _shape_of(tensors: Mapping[str, Tensor]) -> tuple | None:
    """((embed_dim, layers, width, patch, patches a side) of the image tower, (width, layers) of the text tower)."""

    def depth(pattern: str) -> int:
        return len({match.group(1) for match in (re.match(pattern, key) for key in tensors) if match})

    kernel = tensors.get("visual.conv1.weight")
    ends = tensors.get("text_projection", tensors.get("text.text_projection"))
    if kernel is None or ends is None or ends.ndim != 2:
        return None
    text = ends.shape[0], depth(r"(?:text\.)?transformer\.resblocks\.(\d+)\.")
    if "visual.layer1.0.conv1.weight" in tensors:
        layers = tuple(depth(rf"visual\.layer{number}\.(\d+)\.") for number in range(1, 5))
        width = tensors["visual.layer1.0.conv1.weight"].shape[0]
        return (ends.shape[1], layers, width, None, None), text
    places = tensors.get("visual.positional_embedding")
    side = None if places is None else int((places.shape[0] - 1) ** 0.5)
    return (
        (ends.shape[1], depth(r"visual\.transformer\.resblocks\.(\d+)\."), kernel.shape[0], kernel.shape[-1], side),
        text,
    )


def _fill(open_clip: ModuleType, model: nn.Module, tensors: dict[str, Tensor], path: Path, what: str) -> None:
    """Put the weights into the model; the conversions between open_clip's own layouts are its own."""
    tensors = open_clip.convert.convert_state_dict(model, tensors)
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = open_clip.model.convert_to_custom_text_state_dict(tensors)
    own = model.state_dict()
    tensors.pop("text.transformer.embeddings.position_ids", None)  # older transformers kept this buffer
    for name in ("logit_scale", "logit_bias"):  # a number, or a list of one
        if name in tensors and name in own and tensors[name].numel() == 1:
            tensors[name] = tensors[name].reshape(own[name].shape)
    try:
        check_names(own, tensors, path, "name the architecture it was trained as")
    except ValueError as error:
        likely = likely_architectures(tensors)
        hint = f". By their shapes they are those of {' or '.join(likely)}" if likely else ""
        raise ValueError(f"{what}: {error}{hint}") from error
    model.load_state_dict(tensors)


def _build(open_clip: ModuleType, model_cfg: dict, what: str) -> nn.Module:
    """A model of that configuration, its weights not yet loaded."""
    cfg = deepcopy(model_cfg)
    text_is_apart = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    if "multimodal_cfg" in cfg:
        raise ValueError(f"{what}: CoCa, which writes captions, is no dual encoder here")
    for tower, key in (("vision_cfg", "timm_model_pretrained"), ("text_cfg", "hf_model_pretrained")):
        cfg[tower][key] = False  # no download of weights that are replaced anyway
    try:
        if text_is_apart and "hf_model_name" in cfg["text_cfg"]:
            # Without this open_clip asks on the terminal whether to run the code of its folder
            load_config(cfg["text_cfg"]["hf_model_name"], what)
        return (open_clip.CustomTextCLIP if text_is_apart else open_clip.CLIP)(**cfg)
    except OSError as error:  # the text tower's configuration, by name on the hub
        raise FileNotFoundError(
            f"{what}: the configuration of its text tower {cfg['text_cfg'].get('hf_model_name')} is not in reach: "
            f"{first_line(error)}"
        ) from error
    except (TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{what}: its configuration is none that open_clip builds: {first_line(error)}") from error


def _tokenizer(open_clip: ModuleType, name: str, model_cfg: Mapping, what: str):
    own = model_cfg["text_cfg"].get("hf_tokenizer_name")
    try:
        if own:  # open_clip would ask on the terminal whether to run its code
            load_tokenizer(name.removeprefix(FOLDER) if name.startswith(FOLDER) else own, what)
        return open_clip.get_tokenizer(name)
    except ValueError:
        raise
    except Exception as error:  # open_clip and tokenizers raise whatever they meet
        raise FileNotFoundError(f"{what}: its tokenizer cannot be loaded: {first_line(error)}") from error


def _read_folder(folder: Path, what: str) -> tuple[dict, dict, Path]:
    """(model_cfg, preprocess_cfg, the file of weights) of a folder in open_clip's format."""
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{what}: {file}: missing; a folder in open_clip's format has it beside {WEIGHTS}")
    config = read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise ValueError(f"{what}: {file}: no model_cfg in it")
    weights = next((folder / name for name in ON_THE_HUB if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{what}: {folder}: no weights in it ({', '.join(ON_THE_HUB)})")
    model_cfg = config["model_cfg"]
    if model_cfg.get("text_cfg", {}).get("hf_model_name") == TEXT_CONFIG:  # as ``save`` writes it
        model_cfg["text_cfg"]["hf_model_name"] = str(folder / TEXT_CONFIG)
    return model_cfg, config.get("preprocess_cfg") or {}, weights


def _fetch_folder(name: str, what: str) -> Path:
    """The folder on this disk of a model on the hub; offline, what was downloaded before."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    repository = name.removeprefix(HUB)
    try:
        folder = Path(snapshot_download(repository, allow_patterns=["*.json", "*.txt", "*.model"]))
        for weights in ON_THE_HUB:  # the first there is: a repository often holds them twice
            try:
                hf_hub_download(repository, weights)
                break
            except EntryNotFoundError:
                continue
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{what}: not a model that the hub gives here ({first_line(error)}). Where the network is: "
            f"`hf download {repository}`"
        ) from error


def _fetch_tag(open_clip: ModuleType, architecture: str, tag: str, what: str) -> tuple[dict, str]:
    """(what is known of a pretrained tag, the file of its weights)."""
    known = open_clip.get_pretrained_cfg(architecture, tag)
    if not known:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise ValueError(f"{what}: open_clip has no tag {tag!r} for {architecture}; known: {tags}")
    try:
        return dict(known), open_clip.download_pretrained(known)
    except Exception as error:  # urllib's, huggingface_hub's, requests'
        raise FileNotFoundError(f"{what}: its weights cannot be fetched: {first_line(error)}") from error


def _complete(preprocess_cfg: Mapping, model: nn.Module) -> dict:
    """All that open_clip's transform takes, with the image tower's own size."""
    merged = import_open_clip().transform.merge_preprocess_dict(
        import_open_clip().transform.PreprocessCfg(), preprocess_cfg
    )
    size = getattr(model.visual, "image_size", merged["size"])
    return merged | {"size": size if isinstance(size, int) else size[0]}


def _preprocessing(config: Mapping, name: str) -> Preprocessing:
    known = {"shortest": "crop", "squash": "squash"}
    if config["resize_mode"] not in known:
        raise ValueError(f"encoder {name}: resize_mode {config['resize_mode']!r} is none of {', '.join(known)}")
    mean, std = ([255 * value for value in config[key]] for key in ("mean", "std"))
    return Preprocessing(config["size"], mean, std, known[config["resize_mode"]], config["interpolation"], "round")


def _cells(tokens: Tensor | None, grid: int, name: str) -> Tensor | None:
    """(B, grid * grid, P) of (B, L, P) patches of a square."""
    if not grid:
        return None
    if tokens is None:
        raise ValueError(f"grid: {name} has no patches of the width of its pooled features; set grid to 0")
    return pool_cells(as_map(tokens), grid)


def _holding(*parameters: nn.Parameter) -> nn.ParameterList:
    """A module that holds parameters of another."""
    return nn.ParameterList(parameters)


def _parts(module: object) -> list[nn.Parameter]:
    return list(module.parameters()) if isinstance(module, nn.Module) else []


def _closest(architecture: str) -> str:
    return closest_name(architecture, import_open_clip().list_models())
