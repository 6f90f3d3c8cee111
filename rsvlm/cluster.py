"""Bulk work cut into shards: computed in this process, or on the workers of a Dask cluster, with the same results.

Which of them is the machine's affair, not the study's: ``RSVLM_CLUSTER`` says it, which a study fills in from
``user/cluster.yaml`` (``rsvlm.settings.ClusterSettings``). With ``none`` Dask is not imported. Workers read and write the files
that this process names: on other machines the folders must lie under the same paths.

A shard's work is a function that yields one result a shard:

    def work(model, shards, tick): ...  # shards: their inputs; tick(3): three more items are done

This process calls it once for all shards, so that it can read ahead; a worker calls it with one at a time.
"""

import asyncio
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsvlm.extras import import_extra
from rsvlm.files import cache_folder
from rsvlm.progress import Passing, log_line, progress
from rsvlm.settings import ClusterSettings, LocalWorkers

if TYPE_CHECKING:
    from distributed import Client

VARIABLE = "RSVLM_CLUSTER"
TRIES = 3  # of a shard, whether it raises or ends its worker
AHEAD = 1000  # shards that a scheduler knows of at a time: it holds their inputs in memory
NAMED = 5  # failed shards that an error names; the rest is counted
PATIENCE = 60  # seconds for a scheduler to answer, and for its first worker
OF_SCHEDULER = {  # of those started here
    "distributed.scheduler.allowed-failures": TRIES - 1,  # workers that a shard may end, less the last
    "distributed.scheduler.worker-saturation": 1.0,  # no shard waits in a worker that another one ends
}
OF_LOCAL = OF_SCHEDULER | {  # of those whose workers are started here, too
    # A worker that died is started again by its nanny. Dask ends the nanny of one that is not back in 15 s, which a slow
    # machine needs for the imports alone, and starts no other.
    "distributed.deploy.lost-worker-timeout": "1 day",
    "distributed.scheduler.no-workers-timeout": "5 minutes",  # then shards fail: where nobody is left, nobody comes
}
# Sections of dask-jobqueue's configuration -> its classes
JOBS = {
    "htcondor": "HTCondorCluster", "lsf": "LSFCluster", "moab": "MoabCluster", "oar": "OARCluster",
    "pbs": "PBSCluster", "sge": "SGECluster", "slurm": "SLURMCluster",
}  # fmt: skip
Work = Callable[[Any, Iterable[Any], Callable[[int], object]], Iterator[Any]]


@dataclass(frozen=True)
class Shard:
    """A part of bulk work: what errors call it, what the work takes of it, how many items it is on the bar.

    Where the work leaves a file, the shard is finished when that is there, and is never computed again.
    """

    name: str
    inputs: Any  # can be pickled
    items: int = 1
    file: Path | None = None

    def is_finished(self) -> bool:
        """Whether the file is there."""
        return self.file is not None and self.file.is_file()


class ShardsFailed(RuntimeError):
    """Some shards failed as often as they may; the others are done. The message names them and why."""


class SchedulerLost(RuntimeError):
    """The cluster's scheduler went away; finished shards are kept."""


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def chosen_cluster() -> LocalWorkers | str | None:
    """What ``RSVLM_CLUSTER`` says: local workers (as JSON), a scheduler's address, a file; None: none, or nothing.

    Raises:
        ValueError: it says something else.
    """
    told = os.environ.get(VARIABLE, "").strip() or "none"
    try:
        return ClusterSettings(cluster=json.loads(told) if told.startswith("{") else told).choice
    except ValueError as error:
        raise ValueError(f"{VARIABLE}={told}: {error}") from None


@dataclass(frozen=True)
class Workers:
    """A cluster that is open; ``open_workers`` makes it."""

    client: "Client"
    model: str | None  # the name under which each worker has its model
    resources: Mapping[str, int]  # that a shard takes


@contextmanager
def open_workers(
    share: Callable[[], Callable[[int], Any]] | None = None,
    *,
    gpu: bool = False,
    log: Callable[[str], None] = log_line,
) -> Iterator[Workers | None]:
    """The workers of the machine's cluster, with a model; they are ended, or rid of it, with the block. None: no cluster.

    Args:
        share: called where there is a cluster: puts the model where workers find it, and returns what makes it there
            from the worker's number (0, where it has none). A worker does that once, a later one too.
        gpu: a shard takes one unit of the resource GPU.

    Raises:
        ValueError: the setting is none, or no scheduler, no worker or no GPU is there.
        RuntimeError: a worker ended while it made its model.
        ModuleNotFoundError: Dask is not installed.
    """
    choice = chosen_cluster()
    if choice is None:
        yield None
        return
    with ExitStack() as stack:
        client = stack.enter_context(_open_client(choice, gpu, log))
        model = stack.enter_context(_model_on_workers(client, share())) if share is not None else None
        yield Workers(client, model, {"GPU": 1} if gpu else {})


def map_shards(
    work: Work,
    shards: Sequence[Shard],
    workers: Workers | None,
    *,
    what: str,
    unit: str,
    model: Any = None,
    done: int = 0,
) -> Iterator[tuple[Shard, Any]]:
    """(shard, its result): in order where this process computes, as they come from a cluster.

    Shards whose file is there come first, with None. In this process an error of the work is raised at once. On a cluster a shard
    is tried ``TRIES`` times, the others go on, and what failed is told at the end.

    Args:
        workers: of ``open_workers``; None: this process.
        what: the work in a word, for the bar and for Dask's dashboard.
        unit: what the bar counts.
        model: what the work takes first, in this process.
        done: items that are there, beside those of the shards.

    Raises:
        ShardsFailed: some failed; after the last shard.
        SchedulerLost: the scheduler ended.
    """
    finished, missing = [], []
    for shard in shards:
        (finished if shard.is_finished() else missing).append(shard)
    there = done + sum(shard.items for shard in finished)
    yield from ((shard, None) for shard in finished)
    with progress(total=there + sum(shard.items for shard in missing), initial=there, unit=unit, desc=what) as bar:
        if workers is None:
            yield from zip(missing, work(model, [shard.inputs for shard in missing], bar.update), strict=True)
            return
        for shard, result in _on_workers(workers, work, missing, what):
            bar.update(shard.items)
            yield shard, result


def _on_workers(workers: Workers, work: Work, shards: Sequence[Shard], what: str) -> Iterator[tuple[Shard, Any]]:
    from distributed import CancelledError, Future, as_completed

    client = workers.client
    running: dict[Future, Shard] = {}
    failed: list[tuple[Shard, BaseException]] = []
    waiting = iter(shards)

    def submit(count: int) -> list[Future]:
        fresh = {
            client.submit(
                _one,
                work,
                workers.model,
                shard,
                key=f"{what}-{uuid.uuid4()}",
                pure=False,
                retries=TRIES - 1,
                resources=workers.resources,
            ): shard
            for shard in islice(waiting, count)
        }
        running.update(fresh)
        return list(fresh)

    try:
        finished = as_completed(submit(AHEAD), loop=client.loop)
        for future in finished:
            shard = running.pop(future)
            lost = future.status == "cancelled"
            if future.status == "error":
                failed.append((shard, future.exception()))
            elif not lost:
                try:
                    result = future.result()
                except (CancelledError, OSError):  # it went before it could be fetched
                    lost = True
                else:
                    yield shard, result
            if lost:
                raise SchedulerLost(
                    f"the scheduler at {client.scheduler.address} went away; what it finished is kept: start it again, then "
                    "what you ran"
                )
            finished.update(submit(1))
    finally:
        if running and client.status == "running":
            client.cancel(list(running))
    if failed:
        raise ShardsFailed(_told(failed, len(shards)))


def _one(work: Work, name: str | None, shard: Shard) -> Any:
    """The result of one shard, on a worker; None where its file came meanwhile, from a worker that died before it told."""
    from distributed import get_worker

    if shard.is_finished():
        return None
    model = get_worker().plugins[name].model if name else None
    (result,) = work(model, [shard.inputs], lambda _: None)
    return result


def _told(failed: Sequence[tuple[Shard, BaseException]], count: int) -> str:
    from distributed import KilledWorker
    from distributed.scheduler import NoWorkerError

    reasons = []
    for shard, error in failed[:NAMED]:
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, NoWorkerError):
            why = "no worker was left: they ended and could not be started again"
        elif isinstance(error, KilledWorker):
            why = f"ended {error.allowed_failures + 1} workers, as what is too large for their memory does"
        reasons.append(f"{shard.name}: {why}")
    more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    return (
        f"{len(failed)} of {count} shards failed each time they were tried: {'; '.join(reasons)}{more}. The others are kept: mend "
        "what these name, then run this again"
    )


@contextmanager
def _model_on_workers(client: "Client", make: Callable[[int], Any]) -> Iterator[str]:
    """The name under which each worker, a later one too, has what ``make`` makes there; it goes with the block."""
    from distributed import WorkerPlugin

    class Model(WorkerPlugin):
        async def setup(self, worker: Any) -> None:
            number = worker.name if isinstance(worker.name, int) else 0
            self.model = await asyncio.to_thread(make, number)  # the worker goes on answering its scheduler

        def teardown(self, worker: Any) -> None:
            self.model = None

    name = f"model-{uuid.uuid4()}"
    try:
        client.register_plugin(Model(), name=name)
    except OSError as error:
        raise RuntimeError(
            f"cluster: a worker ended while it made its model, as one that is too large for its memory does ({error})"
        ) from error
    try:
        yield name
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(name)


@contextmanager
def _open_client(choice: LocalWorkers | str, gpu: bool, log: Callable[[str], None]) -> Iterator["Client"]:
    """A client of the cluster, which is started and ended here but for one that has an address."""
    distributed = import_extra("distributed", "a cluster", "set `cluster: none`")
    import dask

    with ExitStack() as stack:
        stack.enter_context(dask.config.set(OF_LOCAL if isinstance(choice, LocalWorkers) else OF_SCHEDULER))
        if isinstance(choice, LocalWorkers):
            resources = {"resources": {"GPU": choice.threads}} if gpu else {}
            cluster = distributed.LocalCluster(
                n_workers=choice.workers,
                threads_per_worker=choice.threads,
                security=True,  # who else works on this machine cannot give them work
                dashboard_address="127.0.0.1:0",
                **resources,
            )
            where = stack.enter_context(cluster)
        elif "://" in choice:
            where = choice
        else:
            where = stack.enter_context(_job_cluster(Path(choice)))
        try:
            client = stack.enter_context(distributed.Client(where, timeout=PATIENCE, set_as_default=False))
        except OSError as error:
            raise ValueError(
                f"cluster: no scheduler answers at {where}: start it with `dask scheduler` ({error})"
            ) from None
        log(Passing(f"Dask: {client.dashboard_link}"))
        if isinstance(where, str):
            _check_workers(client, where, gpu)
        yield client


def _check_workers(client: "Client", address: str, gpu: bool) -> None:
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        raise ValueError(f"cluster: {address} has no worker: start some with `dask worker {address}`") from None
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    if gpu and not any(worker["resources"].get("GPU") for worker in workers):
        raise ValueError(
            f"cluster: no worker of {address} has a GPU to give: start them with `dask worker --resources GPU=1 {address}`, "
            "or set `device: cpu`"
        )


def _job_cluster(file: Path) -> Any:
    """A cluster whose workers are jobs, by a file as dask-jobqueue documents its configuration.

    It has one section of ``jobqueue``, such as ``slurm``; ``distributed: adaptive: {minimum, maximum}`` says how many workers.
    """
    import dask

    try:
        jobqueue = import_module("dask_jobqueue")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"cluster: {file} needs dask-jobqueue: python -m pip install dask-jobqueue; or give a scheduler's address"
        ) from error
    if not file.is_file():
        raise FileNotFoundError(f"cluster: {file}: no such file; none, local or a scheduler's address need none")
    (told,) = dask.config.collect_yaml([str(file)])
    sections = list(told.get("jobqueue") or {})
    if len(sections) != 1 or sections[0] not in JOBS:
        raise ValueError(
            f"{file}: `jobqueue` holds {', '.join(sections) or 'nothing'}; give it one section of {', '.join(JOBS)}"
        )
    dask.config.update(dask.config.config, told)
    if not dask.config.get(place := f"jobqueue.{sections[0]}.log-directory", None):
        dask.config.set({place: str(cache_folder().absolute() / "jobs")})  # else jobs print into the project's folder
    cluster = getattr(jobqueue, JOBS[sections[0]])()
    cluster.adapt()
    return cluster
