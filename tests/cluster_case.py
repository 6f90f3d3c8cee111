"""Work for shards that goes wrong on purpose; workers import it."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rsvlm.cluster import Shard, map_shards, open_workers


def square(model, shards, tick) -> Iterator[int]:
    """The model times the square of each number."""
    for number, _ in shards:
        tick(1)
        yield model * number * number


def tried(_, shards, tick) -> Iterator[int]:
    """The number; two raises, four ends its process; a line in a file for each try."""
    for number, folder in shards:
        with (Path(folder) / str(number)).open("a") as file:
            file.write("x\n")
        if number == 2:
            raise ValueError("two is no number")
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        tick(1)
        yield number


def hungry(_, shards, tick) -> Iterator[int]:
    """The number; one takes 500 MB first."""
    for number, _folder in shards:
        if number == 1:
            kept = bytearray(b"x" * 500_000_000)
            time.sleep(20)
            del kept
        tick(1)
        yield number


def slow(_, shards, tick) -> Iterator[None]:
    """Waits; leaves a file that names its process. In the folder of a test that kills it, for long."""
    for _number, folder in shards:
        (Path(folder) / f"at_work_{os.getpid()}").touch()
        time.sleep(60 if (Path(folder) / "program.py").is_file() else 0.01)
        tick(1)
        yield


def run_slow(folder: str) -> None:
    """Two long shards."""
    with open_workers() as workers:
        list(map_shards(slow, [Shard("a", (0, folder)), Shard("b", (1, folder))], workers, what="slow", unit="n"))


def killed_once(how, encoder, blocks, tick) -> Iterator[None]:
    """``_encode_blocks``, whose process is killed in the middle of the third block, the first time."""
    (block,) = blocks
    mark = Path(block.image_paths[0]).with_name("killed")

    def die(_: int) -> None:
        if block.start == 8 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    yield from _original()(how, encoder, blocks, die)


def one_slow(how, encoder, blocks, tick) -> Iterator[None]:
    """``_encode_blocks``; the first process that comes here waits two seconds at each block. A line for each block and process."""
    (block,) = blocks
    folder, own = Path(block.image_paths[0]).parent, str(os.getpid())
    with suppress(FileExistsError):
        (folder / "slow").symlink_to(own)
    with (folder / "computed").open("a") as file:
        file.write(f"{block.start} {own}\n")
    time.sleep(2 if os.readlink(folder / "slow") == own else 0)
    yield from _original()(how, encoder, blocks, tick)


def scheduler_killed(how, encoder, blocks, tick) -> Iterator[None]:
    """``_encode_blocks``, which kills the scheduler in the middle of the third block."""
    (block,) = blocks

    def kill(_: int) -> None:
        if block.start == 8:
            os.kill(int(os.environ["SCHEDULER"]), signal.SIGKILL)
            time.sleep(1)

    yield from _original()(how, encoder, blocks, kill)


def _original():
    from rsvlm.models.feature_shards import _encode_blocks

    return _encode_blocks
