"""Several dual encoders as one: their embeddings stand end to end, so a cosine is the mean of the members' cosines.

Members that were trained alike from other beginnings err on different images: their mean finds more than each
(Lakshminarayanan et al. 2017, deep ensembles), for the members' time.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsvlm.files import write_json
from rsvlm.models.encoders import DualEncoder

MODEL_TYPE = "rsvlm-joined"


class JoinedEncoder(DualEncoder):
    """Two encoders or more that prepare pictures alike.

    Pooled features and cells of the members stand end to end, too. ``logit_scale`` is the first member's.
    """

    def __init__(self, name: str, members: list[DualEncoder]):
        first, *others = members
        if any(other.preprocessing != first.preprocessing for other in others):
            raise ValueError(f"encoder {name}: its members prepare pictures differently, so they cannot share them")
        P, D = (sum(getattr(member, width) for member in members) for width in ("feature_dim", "embedding_dim"))
        super().__init__(name, first.preprocessing, P, D)
        self._parts = nn.ModuleList(members)
        self.to(first.device)  # its own mean and std, too
        self.any_image_size = all(member.any_image_size for member in members)
        self.activation_known = all(member.activation_known for member in members)

    @property
    def members(self) -> list[DualEncoder]:
        return list(self._parts)

    @property
    def logit_scale(self) -> nn.Parameter:
        return self._parts[0].logit_scale

    @property
    def image_tower(self) -> nn.Module:
        return nn.ModuleList([member.image_tower for member in self._parts])

    @property
    def text_tower(self) -> nn.Module:
        return nn.ModuleList([member.text_tower for member in self._parts])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = [member.parameter_groups() for member in self._parts]
        return {name: [parameter for own in groups for parameter in own[name]] for name in groups[0]}

    def image_features(self, pixel_values: Tensor, grid: int = 0) -> tuple[Tensor, Tensor | None]:
        pooled, cells = zip(*(member.image_features(pixel_values, grid) for member in self._parts))
        return torch.cat(pooled, -1), torch.cat(cells, -1) if grid else None

    def project_images(self, pooled: Tensor) -> Tensor:
        """(B, D) of (B, P): each member's embedding has length 1."""
        own = pooled.split([member.feature_dim for member in self._parts], -1)
        embedded = (member.project_images(part) for member, part in zip(self._parts, own, strict=True))
        return torch.cat([F.normalize(part.float(), dim=-1) for part in embedded], -1)

    def text_features(self, texts: list[str]) -> Tensor:
        """(B, D) of B texts: each member's embedding has length 1."""
        return torch.cat([F.normalize(member.text_features(texts).float(), dim=-1) for member in self._parts], -1)

    def image_blocks(self) -> list[list[nn.Module]]:
        return [sum(alike, []) for alike in zip(*(member.image_blocks() for member in self._parts), strict=True)]

    def _beside_weights(self) -> list:
        return [[type(member).__name__, *member._beside_weights()] for member in self._parts]

    def _save_into(self, folder: Path) -> None:
        for number, member in enumerate(self._parts):
            (folder / str(number)).mkdir()
            member._save_into(folder / str(number))
        write_json(folder / "config.json", {"model_type": MODEL_TYPE, "members": len(self._parts)})


def join_siblings(encoder: DualEncoder, members: int) -> DualEncoder:
    """``encoder`` and siblings of it as one encoder of so many members; ``encoder`` itself for one."""
    if members == 1:
        return encoder
    return JoinedEncoder(encoder.name, [encoder, *(encoder.sibling(number) for number in range(1, members))]).eval()
