"""Compiles every Triton kernel for GPUs that need not be there, and reads what the machine code holds.

``python tests/compiled_kernels.py`` prints the table; tests/test_kernels_compiled.py holds it against its limits.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rsvlm.kernels import triton_infonce, triton_ranks, triton_topk
from rsvlm.kernels.triton_tile import GROUP_OF_TILES, SHAPES, STEP
from rsvlm.kernels.triton_topk import GROUP

WIDTHS = (512, 768, 1024)  # CLIP's, and what 1000 is filled up to
TARGETS = (80, 90)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SIZES = {"n_rows": "i32", "n_columns": "i32", "n_groups": "i32", "n_words": "i32", "n_chosen": "i32"}


class Variant(NamedTuple):
    """A kernel as it is launched."""

    kernel: object
    pointers: dict[str, str]  # types of the pointers that are not float32
    constants: dict
    warps: int
    stages: int
    multiplies: bool  # on matrix units


class MachineCode(NamedTuple):
    """What is in a compiled kernel."""

    hmma: int  # matrix instructions of sm_80, which sm_90 still has
    hgmma: int  # those of sm_90, for a group of four warps
    local_loads: int
    local_stores: int
    registers: int  # a thread
    stack: int  # bytes a thread
    shared: int  # bytes a block


def variants(width: int) -> dict[str, Variant]:
    """Every kernel in every precision that it is launched in, by a name."""
    found = {}

    def add(name: str, kernel, precision: str, pointers: dict[str, str], multiplies: bool = True, **constants) -> None:
        shape = SHAPES[precision].arguments()
        warps, stages = shape.pop("num_warps"), shape.pop("num_stages")
        constants = {"D": width, "GROUP_OF_TILES": GROUP_OF_TILES, **shape, **constants}
        found[name] = Variant(kernel, pointers, constants, warps, stages, multiplies)

    half = {"rows": "*fp16", "columns": "*fp16"}
    add("group_maxima", triton_topk.group_maxima_kernel, "half", half, GROUP=GROUP)
    for two_way in (False, True):
        bits = dict.fromkeys(("above_rows", "near_rows", "above_columns", "near_columns"), "*i32")
        add(f"compare, {1 + two_way} way", triton_ranks.compare_kernel, "half", half | bits, TWO_WAY=two_way)
    for kind, precision in (("fp16", "half"), ("bf16", "half"), ("fp32", "tf32"), ("fp32", "ieee")):
        name = f"{kind} {precision}" if kind == "fp32" else kind
        features = {"rows": f"*{kind}", "columns": f"*{kind}"}
        rest = {"PRECISION": "ieee" if precision == "ieee" else "tf32"}
        multiplies = precision != "ieee"
        add(f"log_sums, {name}", triton_infonce.log_sums_kernel, precision, features, multiplies, **rest)
        features = features | {"derivatives": f"*{kind}"}
        add(f"derivatives, {name}", triton_infonce.derivatives_kernel, precision, features, multiplies, **rest)
    found["member_scores"] = Variant(
        triton_topk.member_scores_kernel, half | {"groups": "*i64"}, {"D": width, "K": STEP, "GROUP": GROUP}, 2, 3,
        multiplies=False,
    )  # fmt: skip
    return found


def compile_for(variant: Variant, capability: int) -> MachineCode:
    """The machine code of a kernel for a compute capability (80: A100, 90: H100)."""
    names = variant.kernel.arg_names
    signature = {
        name: "constexpr" if name in variant.constants else SIZES.get(name) or variant.pointers.get(name, "*fp32")
        for name in names
    }
    # What a launch finds out by itself: torch's memory is aligned to 16 bytes.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(variant.kernel, signature, constexprs=variant.constants, attrs=aligned)
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        code = _run(TOOLS / "nvdisasm", "-c", path)
        usage = _run(TOOLS / "cuobjdump", "--dump-resource-usage", path)
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code)
    count = {name: sum(word.split(".")[0] == name for word in instructions) for name in ("HMMA", "HGMMA", "LDL", "STL")}
    shared = max(used["SHARED"], compiled.metadata.shared)
    return MachineCode(
        count["HMMA"], count["HGMMA"], count["LDL"], count["STL"], used["REG"], used["STACK"] + used["LOCAL"], shared
    )


def _run(tool: Path, *arguments) -> str:
    done = subprocess.run([str(tool), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tool.name}: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    for width in WIDTHS:
        for name, variant in variants(width).items():
            for capability in TARGETS:
                print(width, f"{name:24}", f"sm_{capability}", compile_for(variant, capability)._asdict())
