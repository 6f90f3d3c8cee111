"""Bulk work on two Dask workers: the bytes of one process, whatever is killed; and no Dask where there is no cluster."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from cluster_case import hungry, killed_once, one_slow, scheduler_killed, slow, square, tried
from PIL import Image
from scene_case import UTM, write_raster

from rsvlm.cluster import (
    OF_LOCAL,
    TRIES,
    VARIABLE,
    SchedulerLost,
    Shard,
    ShardsFailed,
    map_shards,
    open_workers,
)
from rsvlm.data import duplicates
from rsvlm.data.duplicates import fingerprint_images
from rsvlm.data.rasters.scene import open_scene
from rsvlm.files import cache_folder
from rsvlm.models import caption_shards, feature_shards
from rsvlm.models.captioner import build_capret, load_capret, save_capret
from rsvlm.models.feature_shards import encode_images
from rsvlm.models.inference import propose_captions
from rsvlm.models.neighbours import training_pools
from rsvlm.models.zoo import load_encoder
from rsvlm.scenes import embedding
from rsvlm.scenes.embedding import embed_scene
from rsvlm.settings import Generation

distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`: make test installs it")
dask = pytest.importorskip("dask")
torch.set_num_threads(1)
TESTS = Path(__file__).parent
FILES = ("pooled.npy", "grid.npy", "image_embeddings.npy", "text_embeddings.npy", "texts.json", "meta.json")


@contextmanager
def started(workers: int, **options) -> Iterator:
    """So many workers of one thread each."""
    options |= {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with dask.config.set(OF_LOCAL), distributed.LocalCluster(**options) as made:
        yield made


@pytest.fixture(scope="module")
def cluster():
    with started(2) as made:
        yield made


def doomed_cluster(**options):
    """A worker more than a shard may end: one that ends while it starts is gone for good."""
    return started(TRIES + 1, **options)


@pytest.fixture
def on_cluster(cluster, monkeypatch):
    monkeypatch.setenv(VARIABLE, cluster.scheduler_address)
    return cluster


@pytest.fixture(scope="module")
def encoder(tiny_models):
    return load_encoder(str(tiny_models.clip))


@pytest.fixture
def table(tmp_path, monkeypatch) -> pd.DataFrame:
    """Twenty-two images, which are six shards."""
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(feature_shards, "BLOCK", 4)
    generator, rows = np.random.default_rng(1), []
    for number in range(22):
        path = tmp_path / f"{number}.png"
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
        rows.append({"image_id": f"toy/{number}.png", "path": str(path), "captions": [f"field {number}."]})
    return pd.DataFrame(rows)


def encode(encoder, table, folder, lines=None):
    log = (lambda line: None) if lines is None else lines.append
    return encode_images(encoder, table, folder, views=2, grid=2, batch_size=3, precision="fp32", log=log)


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def computed(work, parts, **options):
    with open_workers(**options) as workers:
        yield from map_shards(work, parts, workers, what=work.__name__, unit="n")


def shards(tmp_path: Path, count: int) -> list[Shard]:
    return [Shard(f"number {number}", (number, str(tmp_path))) for number in range(count)]


def test_features_are_the_same_bytes_also_where_a_worker_is_killed(encoder, table, tmp_path, cluster, monkeypatch):
    encode(encoder, table, tmp_path / "alone")
    monkeypatch.setenv(VARIABLE, cluster.scheduler_address)
    monkeypatch.setattr(feature_shards, "_encode_blocks", killed_once)
    lines = []
    encode(encoder, table, tmp_path / "shared", lines)
    assert (tmp_path / "killed").is_file() and same(tmp_path / "alone", tmp_path / "shared")
    assert any("http://127.0.0.1:" in line and line.endswith("/status") for line in lines)
    assert not list(cache_folder().glob("features_*"))


def test_a_slow_worker_gets_less_to_do_and_nothing_is_computed_twice(encoder, table, tmp_path, cluster, monkeypatch):
    """One of two takes many times as long as the other: the map ends, with the bytes of one process."""
    encode(encoder, table, tmp_path / "alone")
    cluster.wait_for_workers(2, timeout=120)
    monkeypatch.setenv(VARIABLE, cluster.scheduler_address)
    monkeypatch.setattr(feature_shards, "_encode_blocks", one_slow)
    encode(encoder, table, tmp_path / "shared")
    assert same(tmp_path / "alone", tmp_path / "shared")
    computed = [line.split() for line in (tmp_path / "computed").read_text().splitlines()]
    assert sorted(int(start) for start, _ in computed) == [0, 4, 8, 12, 16, 20]
    by_slow = [start for start, process in computed if process == os.readlink(tmp_path / "slow")]
    assert 1 <= len(by_slow) < 3, "it had its shard to end, the other one did the rest"


def test_a_poisoned_image_is_named_and_the_rest_is_kept(encoder, table, tmp_path, on_cluster, monkeypatch):
    whole = (tmp_path / "9.png").read_bytes()
    (tmp_path / "9.png").write_bytes(whole[:100])
    with pytest.raises(
        ShardsFailed, match=r"1 of 6 shards failed each time they were tried: images 8 to 11: ImageError: .*9\.png"
    ):
        encode(encoder, table, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()
    (tmp_path / "9.png").write_bytes(whole)
    monkeypatch.delenv(VARIABLE)
    original, counted = feature_shards.encode_batch, []
    monkeypatch.setattr(feature_shards, "encode_batch", lambda *a: counted.append(len(a[1])) or original(*a))
    encode(encoder, table, tmp_path / "shared")  # goes on without the cluster
    assert sum(counted) == 4
    encode(encoder, table, tmp_path / "alone")
    assert same(tmp_path / "alone", tmp_path / "shared")


def test_the_scheduler_is_killed_and_what_was_finished_is_not_made_again(encoder, table, tmp_path, monkeypatch):
    told = tmp_path / "scheduler.json"
    named = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    }
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(told)]
    scheduler = subprocess.Popen([*dask, "scheduler", *options], env=named, **quiet)
    worker = subprocess.Popen(
        [*dask, "worker", "--scheduler-file", str(told), "--nthreads", "1", "--no-nanny", "--no-dashboard"],
        env=named | {"SCHEDULER": str(scheduler.pid)},
        **quiet,
    )
    try:
        deadline = time.monotonic() + 180
        while not told.is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        with monkeypatch.context() as patch:
            patch.setenv(VARIABLE, json.loads(told.read_text())["address"])
            patch.setattr(feature_shards, "_encode_blocks", scheduler_killed)
            with pytest.raises(SchedulerLost, match="tcp://127.0.0.1:.* went away; what it finished is kept"):
                encode(encoder, table, tmp_path / "shared")
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()
    original, counted = feature_shards.encode_batch, []
    monkeypatch.setattr(feature_shards, "encode_batch", lambda *a: counted.append(len(a[1])) or original(*a))
    encode(encoder, table, tmp_path / "shared")
    assert 0 < sum(counted) <= 22 - 8  # two shards were whole
    encode(encoder, table, tmp_path / "alone")
    assert same(tmp_path / "alone", tmp_path / "shared")


@pytest.fixture
def propose(encoder, table, tmp_path, monkeypatch):
    """A function: proposals for ten images by a tiny captioner on the disk, in shards of four images or at once."""
    monkeypatch.setattr(caption_shards, "IMAGES", 4)
    features = encode(encoder, table, tmp_path / "features")
    made = build_capret("random:llama", features, list(range(12)), device="cpu", dtype="float32", retrieval_dim=4)
    made.config["prompting"] = {"neighbour_captions": 1}
    save_capret(made, tmp_path / "captioner")
    captioner = load_capret(tmp_path / "captioner", "cpu", features=features)
    ids = features.image_ids[12:]
    pools = training_pools(features, table.assign(split=["train"] * 12 + ["test"] * 10), ids, k=3, temperature=0.05)
    generation = Generation(beams=2, samples=2, max_new_tokens=6, pool_candidates=2)
    folders = (tmp_path / "captioner", tmp_path / "features")
    return lambda shards: propose_captions(
        captioner, features, ids, pools, generation, batch_size=2, folders=folders if shards else None
    )


def alike(one, other) -> bool:
    """Whether two proposals are the same to the last bit."""
    assert one.beams == other.beams and one.candidates == other.candidates and one.own == other.own
    pairs = [(own, its, name) for own, its in zip(one.judged, other.judged, strict=True) for name in own]
    return len(pairs) == 40 and all(np.array_equal(own[name], its[name]) for own, its, name in pairs)


def test_captions_are_the_same_bits_in_shards_also_after_a_kill(propose, monkeypatch):
    whole, original, calls = propose(False), caption_shards.beam_captions, []
    assert len({tuple(own) for own in whole.own}) > 3  # images differ

    def dying(asked, **options):
        calls.append(len(asked.image_ids))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(asked, **options)

    monkeypatch.setattr(caption_shards, "beam_captions", dying)
    with pytest.raises(KeyboardInterrupt):
        propose(True)
    assert alike(propose(True), whole) and calls == [4, 4, 2, 2]  # the last shard alone was made anew
    assert not list(cache_folder().glob("captions_*"))


def test_captions_are_the_same_bits_on_a_cluster(propose, on_cluster, monkeypatch):
    whole = propose(False)
    monkeypatch.setattr(caption_shards, "beam_captions", None)  # nothing is computed here
    assert alike(propose(True), whole)


def test_fingerprints_are_the_same_on_a_cluster(table, tmp_path, on_cluster, monkeypatch):
    """A broken image is no failed shard: the audit counts it."""
    files = [*map(Path, table["path"]), tmp_path / "broken.png"]
    files[-1].write_bytes(files[0].read_bytes()[:60])
    here = list(fingerprint_images(files, cache=tmp_path / "here"))  # few images: in this process
    monkeypatch.setattr(duplicates, "IN_ONE_PROCESS", 5)
    monkeypatch.setattr(duplicates, "A_BATCH", 4)
    with monkeypatch.context() as patch:
        patch.setattr(duplicates, "map_batches", None)
        there = list(fingerprint_images(files, cache=tmp_path / "there"))
    assert str(here.pop()) == str(there.pop()) and len(there) == 22
    for one, other in zip(here, there, strict=True):
        pairs = zip(vars(one).values(), vars(other).values(), strict=True)
        assert all(np.array_equal(own, its) for own, its in pairs)


def test_a_scene_is_the_same_bytes_on_a_cluster(encoder, table, tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(embedding, "BLOCK", 8)
    pixels = np.random.default_rng(0).integers(1, 256, (3, 120, 90), dtype=np.uint8)
    pixels[:, :40, :40] = 0  # nodata: windows that are left out
    monkeypatch.chdir(tmp_path)  # workers are elsewhere
    scene = open_scene(write_raster(Path("scene.tif"), pixels, nodata=0, crs="EPSG:32633", transform=UTM))
    embed = partial(embed_scene, encoder, scene, sizes=(32, 64), batch_size=3, precision="fp32", log=lambda line: None)
    embed(tmp_path / "here.parquet")
    monkeypatch.setenv(VARIABLE, cluster.scheduler_address)
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "encode_batch", None)  # nothing is computed here
        assert len(embed(tmp_path / "there.parquet")) > 16
    assert (tmp_path / "here.parquet").read_bytes() == (tmp_path / "there.parquet").read_bytes()


def test_a_shard_is_tried_three_times_and_the_others_go_on(tmp_path, monkeypatch):
    done = {}
    with doomed_cluster() as doomed, pytest.raises(ShardsFailed) as failed:
        monkeypatch.setenv(VARIABLE, doomed.scheduler_address)
        for shard, result in computed(tried, shards(tmp_path, 6)):
            done[shard.name] = result
    assert sorted(done) == ["number 0", "number 1", "number 3", "number 5"]
    assert "2 of 6 shards failed each time they were tried" in str(failed.value)
    assert "number 2: ValueError: two is no number" in str(failed.value)
    assert "number 4: ended 3 workers, as what is too large for their memory does" in str(failed.value)
    assert len((tmp_path / "2").read_text().split()) == len((tmp_path / "4").read_text().split()) == 3


def test_what_workers_have_no_memory_for_is_named(tmp_path, monkeypatch):
    done = []
    with doomed_cluster(memory_limit="400MB") as doomed:
        monkeypatch.setenv(VARIABLE, doomed.scheduler_address)
        with pytest.raises(
            ShardsFailed, match="1 of 4 shards failed .*: number 1: ended 3 workers, as what is too large"
        ):
            done.extend(result for _, result in computed(hungry, shards(tmp_path, 4)))
    assert sorted(done) == [0, 2, 3]


def test_a_worker_makes_its_model_once(tmp_path, on_cluster, monkeypatch):
    monkeypatch.setattr("rsvlm.cluster.AHEAD", 2)  # the scheduler gets the others one by one

    def make(number: int) -> int:
        with (tmp_path / "made").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return 10

    on_cluster.wait_for_workers(2, timeout=120)
    found = dict(computed(square, shards(tmp_path, 8), share=lambda: make))
    assert {shard.name: value for shard, value in found.items()} == {f"number {n}": 10 * n * n for n in range(8)}
    made = (tmp_path / "made").read_text().split()
    assert len(made) == len(set(made)) == 2, "two workers, one each, for eight shards"


LOCAL = '{"local": {"workers": 2}}'


def test_a_local_worker_comes_back_however_long_it_takes(tmp_path, monkeypatch):
    """Dask gives one up that is away for longer than this, for good; a start takes longer, as on a slow machine."""
    monkeypatch.setenv(VARIABLE, LOCAL)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "10ms"}), open_workers() as workers:
        workers.client.wait_for_workers(2, timeout=120)
        before = processes(workers)
        for process in before:
            os.kill(process, signal.SIGKILL)
        deadline = time.monotonic() + 120
        there = set()
        while len(there) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            told = workers.client.scheduler_info(n_workers=-1)["workers"].values()
            there = {worker["name"] for worker in told} if not before & processes(workers) else set()
        assert there == {0, 1}
        assert len(list(map_shards(tried, shards(tmp_path, 2), workers, what="tried", unit="n"))) == 2


def processes(workers) -> set[int | None]:
    return {nanny.pid for nanny in workers.client.cluster.workers.values()}


def test_shards_fail_where_no_local_worker_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, LOCAL)
    monkeypatch.setitem(OF_LOCAL, "distributed.scheduler.no-workers-timeout", "1s")
    with open_workers() as workers, pytest.raises(ShardsFailed, match="number 0: no worker was left: they ended and"):
        workers.client.cluster.scale(0)
        list(map_shards(tried, shards(tmp_path, 1), workers, what="tried", unit="n"))


def test_a_model_that_ends_its_worker_is_told(monkeypatch):
    monkeypatch.setenv(VARIABLE, LOCAL)
    with pytest.raises(
        RuntimeError, match="a worker ended while it made its model, as one that is too large for its m"
    ):
        with open_workers(share=lambda: ended):
            pass


def ended(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_end_with_a_killed_stage(tmp_path):
    program = "from cluster_case import run_slow; import sys\nif __name__ == '__main__': run_slow(sys.argv[1])"
    named = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", VARIABLE: LOCAL}
    (tmp_path / "program.py").write_text(program)
    stage = subprocess.Popen([sys.executable, tmp_path / "program.py", tmp_path], env=named, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while len(list(tmp_path.glob("at_work_*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [psutil.Process(int(file.name.split("_")[-1])) for file in tmp_path.glob("at_work_*")]
    assert len(workers) == 2
    stage.send_signal(signal.SIGKILL)
    stage.wait()
    assert not psutil.wait_procs(workers, timeout=30)[1]


def test_a_cluster_without_what_is_needed_is_told(tmp_path, on_cluster, monkeypatch):
    with pytest.raises(ValueError, match="no worker of tcp://.* has a GPU to give: start them with `dask worker --res"):
        list(computed(square, shards(tmp_path, 1), gpu=True))
    monkeypatch.setattr("rsvlm.cluster.PATIENCE", 0.2)
    monkeypatch.setenv(VARIABLE, "tcp://127.0.0.1:9")
    with pytest.raises(ValueError, match="no scheduler answers at tcp://127.0.0.1:9: start it with `dask scheduler`"):
        list(computed(square, shards(tmp_path, 1)))


def test_jobs_by_the_file_of_dask_jobqueue(tmp_path, cluster, monkeypatch):
    """The real package starts jobs of a cluster's queue; here a class of its name stands in."""
    file = tmp_path / "slurm.yaml"
    file.write_text(
        "jobqueue:\n  slurm: {cores: 4, memory: 16GB}\ndistributed:\n  adaptive: {minimum: 1, maximum: 3}\n"
    )
    monkeypatch.setenv(VARIABLE, str(file))
    with pytest.raises(ModuleNotFoundError, match="needs dask-jobqueue: python -m pip install dask-jobqueue; or give"):
        list(computed(square, shards(tmp_path, 1)))
    seen = []

    class Jobs:
        def adapt(self):
            seen.append([dask.config.get("jobqueue.slurm.cores"), dask.config.get("distributed.adaptive.maximum")])
            seen.append(Path(dask.config.get("jobqueue.slurm.log-directory")))

        def __enter__(self):
            return cluster.scheduler_address

        def __exit__(self, *_):
            seen.append("ended")

    monkeypatch.setitem(sys.modules, "dask_jobqueue", types.SimpleNamespace(SLURMCluster=Jobs))
    found = [value for _, value in computed(slow, shards(tmp_path, 2))]
    assert len(found) == 2 and seen == [[4, 3], cache_folder().absolute() / "jobs", "ended"]
    file.write_text("jobqueue:\n  slorm: {cores: 4}\n")
    with pytest.raises(ValueError, match="slurm.yaml: `jobqueue` holds slorm; give it one section of htcondor, lsf"):
        list(computed(square, shards(tmp_path, 1)))
