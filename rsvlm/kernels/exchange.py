"""What processes tell each other for a loss over all their rows. Without a group every function returns what it got."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_size(group: "dist.ProcessGroup | None") -> tuple[int, int]:
    """(this process's place in the group, number of processes)."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def agree(
    problem: ValueError | None, numbers: list[int], device: torch.device, group: "dist.ProcessGroup | None"
) -> list[list[int]]:
    """Each process's numbers, by rank. A problem of one process is raised in all, so that none waits for it in vain.

    Raises:
        ValueError: ``problem``, or the name of the process that has one.
    """
    rank, size = rank_and_size(group)
    told = [[int(problem is not None), *numbers]]
    if group is not None:
        own = torch.tensor(told[0], device=device)
        every = own.new_empty((size, len(own)))
        dist.all_gather_into_tensor(every.view(-1), own, group=group)
        told = every.tolist()
    if problem is not None:
        raise problem
    for other, (has_problem, *_) in enumerate(told):
        if has_problem:
            raise ValueError(f"process {other} of {size} was given arguments that do not fit; this is process {rank}")
    return [rest for _, *rest in told]


def share_rows(rows: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """The rows of all processes, in the order of their ranks; their numbers may differ."""
    if group is None:
        return rows
    counts = [count for (count,) in agree(None, [len(rows)], rows.device, group)]
    padded = rows.new_zeros((max(counts), rows.shape[1]))
    padded[: len(rows)] = rows
    every = rows.new_empty((len(counts), *padded.shape))
    dist.all_gather_into_tensor(every.view(-1), padded.view(-1), group=group)
    return torch.cat([part[:count] for part, count in zip(every, counts)])


def sum_own_rows(rows: Tensor, n_own: int, group: "dist.ProcessGroup | None") -> Tensor:
    """This process's rows of the sum over processes; ``rows`` has those of all, in the order of ``share_rows``."""
    if group is None:
        return rows
    counts = [count for (count,) in agree(None, [n_own], rows.device, group)]
    dist.all_reduce(rows, group=group)
    before = sum(counts[: rank_and_size(group)[0]])
    return rows[before:before + n_own]


def merge_log_sums(log_sums: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """log of the sum over processes of exp(log_sums), element by element; -inf counts as nothing."""
    if group is None:
        return log_sums
    every = log_sums.new_empty((rank_and_size(group)[1], len(log_sums)))
    dist.all_gather_into_tensor(every.view(-1), log_sums.contiguous(), group=group)
    return every.logsumexp(dim=0)


def total(value: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """The sum over processes of a tensor."""
    if group is None:
        return value
    value = value.clone()
    dist.all_reduce(value, group=group)
    return value
