"""Speed and memory of the kernels: ``python benchmarks/kernels.py --save NAME`` prints a table and records it.

The record is ``benchmarks/results/NAME.json``: every time with the device, the versions, the sizes and this command.
``--scan faiss``, ``float32`` or ``bfloat16`` forces how top-k and ranks scan on a CPU, whatever it would choose. For
top-k the other scans stand beside it, marked as forced: on a CPU without instructions for bfloat16 the counts and the
agreement of such a scan mean something, its times do not. ``--small`` tries it in seconds. Quiet machines only: a busy
neighbour makes times several times longer.
"""

import argparse
import shlex
import sys
from contextlib import nullcontext

import pandas as pd
import torch

from rsvlm.files import write_json
from rsvlm.kernels import force_scan
from rsvlm.kernels.backends import SCANS
from rsvlm.kernels.measuring import Sizes, measure
from rsvlm.study.paths import BENCHMARKS
from rsvlm.study.recording import provenance
from rsvlm.viewing.training_figures import speed_table

SMALL = Sizes(queries=200, items=2000, rank_items=1000, width=64, batch=256, growing=(500, 1000))


def main() -> int:
    """Measure, print, and record where a name is given."""
    parser = argparse.ArgumentParser(description="Measure the kernels' speed and memory.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--repeats", type=int, default=3, help="how often each method is timed")
    parser.add_argument("--scan", choices=SCANS, help="force how a CPU scans")
    parser.add_argument("--save", metavar="NAME", help="record under benchmarks/results/NAME.json")
    for name, value in Sizes()._asdict().items():
        if name != "growing":
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"instead of {value:,}")
    parser.add_argument("--growing", type=int, nargs="*", help="items of the search whose growth is shown")
    arguments = parser.parse_args()
    sizes = SMALL if arguments.small else Sizes()
    given = {name: getattr(arguments, name) for name in sizes._fields if getattr(arguments, name) is not None}
    sizes = sizes._replace(**given)._replace(growing=tuple(given.get("growing", sizes.growing)))
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    with force_scan(arguments.scan) if arguments.scan else nullcontext():
        measured = measure(sizes, arguments.device, repeats=arguments.repeats, log=say)
    print(speed_table(measured).to_string())
    if arguments.save:
        command = shlex.join(["python", "benchmarks/kernels.py", *sys.argv[1:]])
        record = {"command": command, "repeats": arguments.repeats, "provenance": provenance(0, arguments.device)}
        record["matmul_precision"] = torch.get_float32_matmul_precision()
        write_json(BENCHMARKS / f"{arguments.save}.json", record | measured)
    return 0


if __name__ == "__main__":
    with pd.option_context("display.width", 200):
        sys.exit(main())
