"""One of several processes that share a loss: ``python tests/distributed_cases.py RANK WORLD FOLDER`` (gloo).

Groups of 1 ... WORLD processes compute the loss of the same rows, unevenly split; what each finds is saved in FOLDER.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from gloo_processes import join
from torch.nn.parallel import DistributedDataParallel

from rsvlm.kernels import contrastive_loss

N, M, WIDTH, INNER = 23, 31, 12, 7
CUTS = {1: ([0, 23], [0, 31]), 2: ([0, 6, 23], [0, 20, 31]), 3: ([0, 4, 4, 23], [0, 1, 18, 31])}  # of images, texts


def inputs(dtype=torch.float32):
    """(images, texts, positives (N, M), weights of a linear layer before each tower)."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(n, INNER, generator=generator).to(dtype) for n in (N, M))
    positives = torch.rand(N, M, generator=generator) < 0.06
    positives[0, 0] = True
    weights = [torch.randn(WIDTH, INNER, generator=generator).to(dtype) for _ in range(2)]
    return images, texts, positives, weights


class Towers(torch.nn.Module):
    """A linear layer a tower and the scale."""

    def __init__(self, weights):
        super().__init__()
        self.image, self.text = (torch.nn.Parameter(weight.clone()) for weight in weights)
        self.log_scale = torch.nn.Parameter(weights[0].new_tensor(2.0))

    def forward(self, images, texts):
        features = (images @ self.image.T, texts @ self.text.T)
        return *(torch.nn.functional.normalize(part, dim=1) for part in features), self.log_scale.exp()


def run(rank: int, world: int, folder: Path) -> None:
    """All group sizes; groups hold the processes of the lowest ranks."""
    images, texts, positives, weights = inputs()
    for size in range(1, world + 1):
        group = dist.new_group(list(range(size)))
        if rank >= size:
            continue
        (a, b), (c, d) = (cuts[rank : rank + 2] for cuts in CUTS[size])
        model = DistributedDataParallel(Towers(weights), process_group=group)
        features = model(images[a:b], texts[c:d])
        for part in features[:2]:
            part.retain_grad()
        loss = contrastive_loss(*features, positives[a:b], group=group)
        loss.backward()
        found = {"loss": loss.detach(), "images": features[0].grad, "texts": features[1].grad}
        found |= {name: parameter.grad for name, parameter in model.module.named_parameters()}
        if size != 3:  # pair i is right for row i: as many images as texts in each process
            pairs = [part[: min(b - a, d - c)].detach() for part in features[:2]]
            found["diagonal"] = contrastive_loss(*pairs, torch.tensor(9.0), group=group)
        torch.save(found, folder / f"{size}_{rank}.pt")

    try:  # one process with arguments that do not fit must not leave the others waiting
        contrastive_loss(images[:3], texts[:3, : INNER - (rank == 1)], 1.0, group=dist.group.WORLD)
        said = "nothing"
    except ValueError as error:
        said = str(error)
    try:
        contrastive_loss(
            images[:3],
            texts[:3],
            1.0,
            torch.zeros(3, 3 * world + (rank == 2), dtype=torch.bool),
            group=dist.group.WORLD,
        )
    except ValueError as error:
        said += f"\n{error}"
    (folder / f"said_{rank}.txt").write_text(said)


if __name__ == "__main__":
    join(run)
