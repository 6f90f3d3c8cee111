"""RS-CapRet (Silva et al. 2024) as one module: a causal language model that sees images and can ask for them.

Trained are the linear projections of cached image features into the language model's input space, one row for a new
token ``[RET]``, projections of its hidden state and of the image into one retrieval space, and LoRA adapters (rank 0:
the paper's frozen decoder). They are kept in float32; the frozen language model may be bfloat16.

``[RET]`` is no row of the language model's matrices: it has its own input row and its own output row, and its id is the
first behind the vocabulary. So a frozen matrix of 49,152 rows gets no gradients and no Adam moments for one row's sake.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rsvlm.models.prompts import (
    OF_TWO,
    PADDING,
    VISUAL,
    PackedRows,
    Row,
    attention_bias,
    pack_rows,
    tell_neighbours,
)
from rsvlm.settings import CapRetSettings

MAX_LOGIT_SCALE = 100.0  # CLIP's
FEATURE_FLOOR = 0.1  # smallest standard deviation of a feature, as a share of the mean one: rare features stay rare
CPU_ROWS = 8  # rows of a batch that go through the decoder together on a CPU
ANCHOR = ":"  # text is tokenised as it stands behind something, never as the start of a text


class CapRet(nn.Module):
    """A captioner over a frozen language model; see the module's text.

    Args:
        language_model, tokenizer: as ``load_language_model`` gives them; the model gets the adapters in place.
        seed: of the new weights.

    Raises:
        ValueError: a LoRA target that is no linear layer (lists those that are), or a language model whose logits are
            more than its output matrix times its hidden state.
    """

    def __init__(
        self, language_model: nn.Module, tokenizer: object, settings: CapRetSettings, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.settings = settings
        self.config: dict = {}  # what config.json says, once built or loaded by rsvlm.models.captioner
        self.merged = False  # whether load_capret added the adapters to the weights that they adapt
        self.tokenizer = tokenizer
        self.language_model = language_model.requires_grad_(False)
        self.vocabulary_size = language_model.get_input_embeddings().weight.shape[0]
        self.ret_id = self.vocabulary_size
        self.eos_id = tokenizer.eos_token_id
        self.start_ids = [token for token in tokenizer("").input_ids if token != self.eos_id]
        self._anchor = tokenizer(ANCHOR, add_special_tokens=False).input_ids
        self._check_logits()
        P, G, R = settings.feature_dim, settings.grid_cells, settings.retrieval_dim
        embeddings = language_model.get_input_embeddings().weight
        H, device = embeddings.shape[1], embeddings.device
        sample = embeddings[:: max(1, len(embeddings) // 4096)].float()
        std, centre = sample.std().item(), sample.mean(0).cpu()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            if settings.lora_rank:
                _add_lora(language_model, settings)
            self.visual_projection = _linear(P, H * settings.visual_tokens, std / math.sqrt(P))
            self.grid_projection = _linear(P, H, std / math.sqrt(P)) if G else None
            self.visual_position = nn.Parameter(torch.randn(settings.tokens_per_image, H) * std / 10)
            self.image_projection = _linear(P, R, 1 / math.sqrt(P))
            self.text_projection = _linear(H, R, 1 / math.sqrt(H))
            self.ret_input = nn.Parameter(centre + torch.randn(H) * std)
            tied = language_model.get_output_embeddings().weight is embeddings
            self.ret_output = None if tied else nn.Parameter(torch.randn(H) * std)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        for name, shape in (("pooled", (P,)), ("grid", (P,))):
            self.register_buffer(f"{name}_mean", torch.zeros(shape))
            self.register_buffer(f"{name}_std", torch.ones(shape))
        self.to(device)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.logit_scale.device

    def encode_text(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as it stands behind other text (with a space before it), without special tokens."""
        if not texts:
            return []
        at = len(self._anchor)
        found = self.tokenizer([f"{ANCHOR} {text}" for text in texts], add_special_tokens=False).input_ids
        return [
            ids[at:] if ids[:at] == self._anchor else self.tokenizer(f" {text}", add_special_tokens=False).input_ids
            for text, ids in zip(texts, found)
        ]

    def decode_text(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens and ``[RET]``."""
        known = [token for token in ids if 0 <= token < self.vocabulary_size]
        return self.tokenizer.decode(known, skip_special_tokens=True).strip()

    def image_prefix(self, prompt: Sequence[int]) -> list[int]:
        """Token ids of an image and the prompt behind it."""
        return [*self.start_ids, *[VISUAL] * self.settings.tokens_per_image, *prompt]

    def neighbours_prompt(self, neighbours: Sequence[str]) -> list[int]:
        """Token ids of neighbours' captions as they stand before an instruction; none without captions."""
        return self.encode_text([tell_neighbours(neighbours)])[0] if neighbours else []

    def second_image_prompt(self, prompt: Sequence[int]) -> list[int]:
        """Token ids between the visual tokens of a first image and the answer: its words, a second image with its, the prompt.

        ``<image 1> This is the first image. <image 2> This is the second image. <prompt>``
        """
        first, second = self.encode_text(OF_TWO)
        return [*first, *[VISUAL] * self.settings.tokens_per_image, *second, *prompt]

    def pack(self, rows: Sequence[Row]) -> PackedRows:
        """The rows as one padded batch, on the captioner's device; see ``pack_rows``."""
        packed = pack_rows(rows, eos_id=self.eos_id, ret_id=self.ret_id, start_ids=self.start_ids)
        return packed.to(self.device)

    @torch.no_grad()
    def set_feature_statistics(self, pooled: Tensor, grid: Tensor | None = None) -> None:
        """Standardise features by the mean and standard deviation of these: (n, P) and (n, G, P) of training images."""
        for name, values in (("pooled", pooled), ("grid", grid)):
            if values is not None:
                values = values.reshape(-1, values.shape[-1]).float().to(self.device)
                std = values.std(0, correction=0)
                getattr(self, f"{name}_mean").copy_(values.mean(0))
                getattr(self, f"{name}_std").copy_(std.clamp(min=max(1e-6, FEATURE_FLOOR * std.mean().item())))

    def visual_tokens(self, pooled: Tensor, grid: Tensor | None = None) -> Tensor:
        """(B, n, H) inputs for the language model: ``visual_tokens`` of the pooled features, then one a grid cell.

        Args:
            pooled: (B, P) encoder features.
            grid: (B, G, P), needed if the captioner has grid cells.
        """
        B, H = len(pooled), self.ret_input.shape[0]
        tokens = self.visual_projection(self._standard(pooled, "pooled")).view(B, self.settings.visual_tokens, H)
        if self.grid_projection is not None:
            if grid is None or grid.shape[1] != self.settings.grid_cells:
                raise ValueError(
                    f"the captioner takes {self.settings.grid_cells} grid cells an image, the features have "
                    f"{0 if grid is None else grid.shape[1]}: encode the images with the same grid"
                )
            tokens = torch.cat([tokens, self.grid_projection(self._standard(grid, "grid"))], dim=1)
        return tokens + self.visual_position

    def beside(self, tokens: Tensor, more: Tensor, counts: Sequence[int]) -> Tensor:
        """(B, m, H): each row's visual tokens (B, n, H), then those of its further images, then zeros that no token takes.

        Args:
            more: (S, n, H) of the further images, in the rows' order.
            counts: B numbers of further images, S in all.
        """
        parts = more.split([int(count) for count in counts])
        rows = [torch.cat([own, part.flatten(0, 1)]) for own, part in zip(tokens, parts, strict=True)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def embed_images(self, pooled: Tensor) -> Tensor:
        """(B, R) rows of length 1 in the retrieval space, of pooled features (B, P)."""
        return F.normalize(self.image_projection(self._standard(pooled, "pooled")), dim=-1)

    def embed_ret(self, hidden: Tensor) -> Tensor:
        """(M, R) rows of length 1 in the retrieval space, of hidden states (M, H) at ``[RET]``."""
        return F.normalize(self.text_projection(hidden.float()), dim=-1)

    def scale(self) -> Tensor:
        """The factor on similarities in the contrastive loss; ``limit_scale`` keeps it at 100 or less in training."""
        return self.logit_scale.exp()

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Put ``logit_scale`` back to ln 100 where it is higher, as CLIP does: a clamp in the loss would leave it no gradient."""
        self.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def embed_tokens(self, input_ids: Tensor, visual: Tensor | None = None) -> Tensor:
        """(B, T, H) inputs of token ids (B, T); each ``VISUAL`` takes the next of the rows ``visual`` (..., H).

        Of ``visual`` (B, m, H) with more rows than an image has, as ``beside`` gives them, a sequence takes its own first ones.
        """
        table = self.language_model.get_input_embeddings()
        inputs = table(input_ids.clamp(0, self.vocabulary_size - 1))
        inputs = torch.where((input_ids == self.ret_id)[..., None], self.ret_input.to(inputs.dtype), inputs)
        if visual is not None:
            at = input_ids == VISUAL
            if visual.dim() == 3 and visual.shape[1] > self.settings.tokens_per_image:
                visual = visual[torch.arange(visual.shape[1], device=at.device) < at.sum(1, keepdim=True)]
            inputs = inputs.masked_scatter(at[..., None], visual.to(inputs.dtype))
        return inputs

    def run_decoder(self, inputs: Tensor, **options: object) -> object:
        """The decoder's output (last_hidden_state, past_key_values) without the costly output matrix."""
        return self.language_model.base_model(inputs_embeds=inputs, **options)

    def hidden_states(self, packed: PackedRows, visual: Tensor | None, *, chunk: int = 0) -> Tensor:
        """(B * T, H) last hidden states of packed rows; zeros at padding.

        ``visual`` (B, n, H) or None. On CPUs, rows go through a few at a time, those of like length together: less
        padding, the same result.

        Args:
            chunk: in training, rows whose activations are kept together; the backward pass computes them anew. 0: all.
        """
        B, T = packed.input_ids.shape
        lengths = (packed.segments != PADDING).sum(1)
        order = lengths.argsort(stable=True)
        done = []
        for rows in order.split(min(chunk or B, CPU_ROWS if self.device.type == "cpu" else B)):
            own = int(lengths[rows].max())
            what = (packed, visual, rows, own)
            hidden = checkpoint(self._decode, *what, use_reentrant=False) if chunk else self._decode(*what)
            done.append(F.pad(hidden, (0, 0, 0, T - own)))
        return torch.cat(done).index_select(0, order.argsort()).flatten(0, 1)

    def _decode(self, packed: PackedRows, visual: Tensor | None, rows: Tensor, own: int) -> Tensor:
        """(b, own, H) last hidden states of some rows, of their first ``own`` places."""
        inputs = self.embed_tokens(
            packed.input_ids[rows, :own], None if visual is None else visual.index_select(0, rows)
        )
        bias = attention_bias(packed.segments[rows, :own], inputs.dtype)
        output = self.run_decoder(
            inputs, attention_mask=bias, position_ids=packed.positions[rows, :own], use_cache=False
        )
        return output.last_hidden_state

    def logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(n, V) and (n,) float32: the vocabulary's and ``[RET]``'s logits at hidden states (n, H)."""
        row = self.ret_input if self.ret_output is None else self.ret_output
        return self.language_model.get_output_embeddings()(hidden).float(), hidden.float() @ row

    def negative_log_likelihoods(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """(n,) float32 cross-entropies of labels (n,), which may be ``[RET]``, at hidden states (n, H)."""
        words, ret = self.logits(hidden)
        # Without a copy of the large matrix to append one column
        total = torch.logaddexp(words.logsumexp(-1), ret)
        chosen = words.gather(1, labels.clamp(max=self.vocabulary_size - 1)[:, None])[:, 0]
        return total - torch.where(labels == self.ret_id, ret, chosen)

    def spread(self, group: "dist.ProcessGroup") -> None:
        """Leave each process its share of the frozen layers, which are gathered one by one where they are used (FSDP2).

        What trains stays whole in every process, and so do the input and output matrices. From then on all processes
        have to run the decoder equally often.
        """
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        decoder = self.language_model.base_model
        lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
        layers, whole = max(lists, key=len), {p for p in self.parameters() if p.requires_grad}
        how = {"mesh": DeviceMesh.from_group(group, self.device.type), "reshard_after_forward": True}
        for layer in layers:
            fully_shard(layer, ignored_params=whole, **how)
        inside = {id(parameter) for parameter in layers.parameters()}
        fully_shard(decoder, ignored_params=whole | {p for p in decoder.parameters() if id(p) not in inside}, **how)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All that trains, by kind: projection (into the language model), retrieval, lora."""
        groups: dict[str, list[nn.Parameter]] = {"projection": [], "retrieval": [], "lora": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                kind = (
                    "lora"
                    if name.startswith("language_model.")
                    else "projection"
                    if "visual" in name or "grid" in name
                    else "retrieval"
                )
                groups[kind].append(parameter)
        return groups

    def trained_state(self) -> dict[str, Tensor]:
        """name -> tensor of all that makes this captioner out of its language model: trained weights, statistics."""
        state = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        return state | {name: b for name, b in self.named_buffers() if not name.startswith("language_model.")}

    @torch.no_grad()
    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Put back what ``trained_state`` gave; see ``check_names``."""
        for name, tensor in self.trained_state().items():
            tensor.copy_(state[name])

    def _standard(self, features: Tensor, kind: str) -> Tensor:
        features = features.to(self.device, torch.float32)
        return (features - getattr(self, f"{kind}_mean")) / getattr(self, f"{kind}_std")

    @torch.no_grad()
    def _check_logits(self) -> None:
        table = self.language_model.get_input_embeddings()
        inputs = table(torch.arange(4, device=table.weight.device)[None])
        whole = self.language_model(inputs_embeds=inputs, use_cache=False).logits
        parts = self.language_model.get_output_embeddings()(self.run_decoder(inputs, use_cache=False).last_hidden_state)
        if not torch.isfinite(whole).all():
            raise ValueError(
                f"{type(self.language_model).__name__} gives logits that are no numbers in {whole.dtype}: its weights "
                "are damaged, or too large for that dtype (take bfloat16 or float32)"
            )
        if not torch.allclose(whole.float(), parts.float(), rtol=1e-2, atol=1e-2):
            raise ValueError(
                f"{type(self.language_model).__name__} scales or caps its logits; take a language model whose logits "
                "are its output matrix times its last hidden state (LLaMA, Mistral, Qwen and their like)"
            )


def _linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


def _add_lora(language_model: nn.Module, settings: CapRetSettings) -> None:
    """Put LoRA adapters into the model, in place, in float32."""
    from peft import LoraConfig, inject_adapter_in_model

    linear = {name.rsplit(".", 1)[-1] for name, layer in language_model.named_modules() if isinstance(layer, nn.Linear)}
    unknown = sorted(set(settings.lora_targets) - linear)
    if unknown:
        raise ValueError(
            f"lora_targets: {', '.join(unknown)}: no such linear layer in {type(language_model).__name__}; it has "
            f"{', '.join(sorted(linear))}"
        )
    inject_adapter_in_model(
        LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=list(settings.lora_targets),
            bias="none",
        ),
        language_model,
    )
    for name, parameter in language_model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        parameter.requires_grad_("lora_" in name)
