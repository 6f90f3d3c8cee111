"""Every Triton kernel compiles for an A100 and an H100 without a GPU, and its machine code is as it should be."""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: `make test` does it", allow_module_level=True)

import compiled_kernels  # tests/compiled_kernels.py

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block can have
VARIANTS = compiled_kernels.variants(768)
# bfloat16 differs from float16 in one letter of each instruction; `python tests/compiled_kernels.py` shows all.
CHOSEN = [name for name in VARIANTS if "bf16" not in name and "1 way" not in name]


@pytest.mark.parametrize(
    ("name", "capability"),
    [(name, gpu) for name in CHOSEN for gpu in (compiled_kernels.TARGETS if "fp32" not in name else (90,))],
)
def test_the_machine_code_of_a_kernel(name, capability):
    variant = VARIANTS[name]
    code = compiled_kernels.compile_for(variant, capability)
    assert code.local_loads == code.local_stores == code.stack == 0, "registers were spilled"
    assert code.registers * variant.warps * 32 <= 65536 and code.registers <= 255, "one block must fit"
    assert code.shared <= SHARED[capability]
    if variant.multiplies:
        assert (code.hgmma if capability == 90 else code.hmma) > 0, "no matrix instructions"
        assert code.shared >= 64 * 1024, "loads are not pipelined through shared memory"


def test_every_kernel_is_compiled():
    from triton.runtime import JITFunction

    from rsvlm.kernels import triton_infonce, triton_ranks, triton_topk

    modules = (triton_infonce, triton_ranks, triton_topk)
    kernels = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    assert {variant.kernel.__name__ for variant in VARIANTS.values()} == kernels
    assert {VARIANTS[name].kernel.__name__ for name in CHOSEN} == kernels
    assert all(isinstance(variant.kernel, JITFunction) for variant in VARIANTS.values())
