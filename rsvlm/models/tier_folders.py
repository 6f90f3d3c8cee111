"""Folders that tiers lie in: written from vectors that are there, read by what they say they are."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from rsvlm.files import read_json, whole_folder, write_json
from rsvlm.models.faiss_tier import MEMORY, FaissTier
from rsvlm.models.lance_tier import LanceTier
from rsvlm.models.tiers import CONFIG, DAMAGED, RECALL, TIERS, Block, ExactTier, Tier


def read_tier(folder: Path, width: int, again: str = DAMAGED) -> Tier:
    """The tier in a folder, of vectors of ``width`` numbers.

    Args:
        again: how the folder is made anew, for a message.

    Raises:
        FileNotFoundError: none is there.
        ModuleNotFoundError: its package is not installed.
        ValueError: it is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder}: no index here ({CONFIG} is missing); {again}")
    config = read_json(folder / CONFIG)
    kind = config.get("tier", ExactTier.kind) if isinstance(config, dict) else None
    if kind not in TIERS:
        raise ValueError(f"{folder / CONFIG}: 'tier' is {kind!r}, none of {', '.join(TIERS)}; {again}")
    read = {"exact": ExactTier.read, "faiss": FaissTier, "lancedb": partial(LanceTier, create=False)}
    try:
        return read[kind](folder, width)
    except ValueError as error:
        raise ValueError(str(error).replace(DAMAGED, again)) from error


def write_tier(
    kind: str,
    folder: Path,
    width: int,
    n: int,
    blocks: Iterable[Block],
    config: dict,
    memory: int = MEMORY,
    recall: float = RECALL,
) -> None:
    """Write n images as a tier, whole or not at all.

    Args:
        kind: faiss or lancedb.
        blocks: names, vectors (m, width) of length 1 and facts of all of them.
        config: what else is known of the images.
        memory, recall: as ``rsvlm.models.index.build_index`` takes them.

    Raises:
        ModuleNotFoundError: the tier's package is not installed.
        ValueError: the memory is too small for so many images.
    """
    if kind == FaissTier.kind:
        FaissTier.make(folder, width, n, blocks, config, memory, recall)
        return
    with whole_folder(folder) as scratch:
        tier = LanceTier(scratch, width, recall)
        for names, vectors, facts in blocks:
            tier.add(names, vectors, facts)
        tier.compact()
        write_json(scratch / CONFIG, config | {"tier": tier.kind})
