"""The Triton backends on a real GPU: the cases of the interpreter, bfloat16, and sizes that only a GPU can do."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rsvlm.kernels import contrastive_loss, force_backend, similarity_topk, two_way_ranks

CASES = Path(__file__).with_name("triton_cases.py")
GPU = torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
WHY = "no NVIDIA GPU here: the Triton backends are only interpreted and compiled"
pytestmark = pytest.mark.skipif(not GPU, reason=WHY)


def test_the_cases_of_the_interpreter():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=CASES.parents[1])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


@pytest.mark.parametrize("width", [512, 768])
def test_the_same_bits_as_on_a_cpu(width):
    torch.manual_seed(0)
    images, texts = torch.randn(1093, width), torch.randn(5465, width)
    texts[2000:2400] = texts[:400]
    positives = torch.arange(1094) * 5, torch.arange(5465)
    on_gpu = [part.cuda() for part in (images, texts)]
    with force_backend("triton"):
        found = similarity_topk(*on_gpu, 10), *two_way_ranks(*on_gpu, tuple(part.cuda() for part in positives))
    right = similarity_topk(images, texts, 10), *two_way_ranks(images, texts, positives)
    for one, other in zip(found, right):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(one, other))


def test_rows_beyond_two_to_the_31_elements():
    """3.1 million rows of 768 numbers: offsets that 32 bits do not hold."""
    items = torch.zeros(3_100_000, 768, dtype=torch.float16, device="cuda")
    items[-1, 0] = items[2_900_000, 0] = 1
    queries = torch.zeros(2, 768, dtype=torch.float16, device="cuda")
    queries[:, 0] = 1
    with force_backend("triton"):
        indices = similarity_topk(queries, items, 3, normalize=False)[1]
    assert indices.tolist() == [[2_900_000, 3_099_999, 0]] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_large_batch_stays_small_in_memory(dtype):
    torch.manual_seed(0)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(32768, 768, device="cuda"), dim=1).to(dtype).requires_grad_()
        for _ in range(2)
    )
    scale = torch.tensor(50.0, device="cuda", requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with force_backend("triton"):
        contrastive_loss(images, texts, scale).backward()
    assert torch.cuda.max_memory_allocated() - before < 2**31, "half of one float32 matrix of logits"
    with force_backend("torch"):
        right = contrastive_loss(*(part.detach().requires_grad_() for part in (images, texts)), scale.detach())
    assert torch.isfinite(images.grad).all() and torch.isfinite(right)
