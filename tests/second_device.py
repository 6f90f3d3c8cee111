"""A second device where there is no GPU: tensors in the CPU's memory that say they lie elsewhere and do what a GPU's do.

As a pytest plugin (``-p second_device``) each test runs with it in place of the CPU: models go to it that would go to the CPU. What
mixes the two devices raises, as does ``.numpy()`` without ``.cpu()``; the arithmetic is the CPU's, so tests expect the same
figures. It says nothing of CUDA's own kernels, types and memory.

The device is PyTorch's PrivateUse1 with a backend in Python (``torch.utils.backend_registration``), here for the pinned PyTorch.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default, aten.copy.default, aten._foreach_copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
IN_HALF = (
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "linear",
    "matmul",
    "conv2d",
    "scaled_dot_product_attention",
)  # under autocast


class Backend:
    """What `torch.<device>` has to answer."""

    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


_setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
DEVICE = torch.device(NAME, 0)
torch.inference_mode = torch.no_grad  # a tensor in a wrapper has a version, which inference mode forbids
kernels = torch.library.Library("aten", "IMPL")


class Elsewhere(torch.Tensor):
    """A tensor on the second device; `inner` is the CPU's that holds its values."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        how = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **how)

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    def __repr__(self):
        return f"Elsewhere({self.inner!r})"

    def __deepcopy__(self, memo):
        made = Elsewhere(self.inner.clone())
        if getattr(self, "_is_param", False):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def tolist(self):
        return self.inner.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() to copy it first")

    __array__ = numpy

    def untyped_storage(self):  # safetensors asks whether two tensors share it
        return self.inner.untyped_storage()

    def data_ptr(self):
        return self.inner.data_ptr()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            out = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") == "__set__" and function.__self__ is torch._C.TensorBase.data:
            args[0].inner = args[1].inner
        return out

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


class Watch(TorchDispatchMode):
    """Sees what is made on the second device, and counts what is computed there."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not is_here(kwargs.get("device")) and not any(
            isinstance(leaf, Elsewhere) for leaf in tree_leaves((args, kwargs))
        ):
            return operation(*args, **kwargs)
        self.count += 1
        return compute(operation, args, kwargs)


def is_here(device: object) -> bool:
    return device is not None and torch.device(device).type == NAME


def compute(operation, args, kwargs):
    """The operation on the CPU's tensors, its results where they belong."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    if ours and operation not in COPIES:
        check_devices(operation, args, tensors)

    def unwrapped(value):
        if isinstance(value, Elsewhere):
            return value.inner
        return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value

    inputs = tree_map(unwrapped, args)
    out = operation(*inputs, **tree_map(unwrapped, kwargs))
    if operation is aten._to_copy.default and out.numel() and out.data_ptr() == inputs[0].data_ptr():
        out = out.clone()
    if operation is aten.copy_.default:
        return args[0]
    asked = kwargs.get("device")
    if not (is_here(asked) if asked is not None else ours):
        return out
    known = {id(tensor.inner): tensor for tensor in ours}  # what was changed in place

    def wrapped(value):
        if not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else Elsewhere(value)

    return tree_map(wrapped, out)


def check_devices(operation, args, tensors) -> None:
    """Raise where a CPU tensor stands among ours: only numbers may, and the CPU's indices of a tensor of ours."""
    indexed = operation in INDEXING and isinstance(args[0], Elsewhere)
    values = args[2:3] if indexed else ()
    for tensor in tensors:
        if (
            isinstance(tensor, Elsewhere)
            or tensor.dim() == 0
            or (indexed and not any(tensor is value for value in values))
        ):
            continue
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {DEVICE} and cpu: {operation} {shapes}"
        )


def empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return Elsewhere(torch.empty(size, dtype=dtype, device="cpu"))


def empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def copy_from(source, target, non_blocking=False):
    source, target_inner = (tensor.inner if isinstance(tensor, Elsewhere) else tensor for tensor in (source, target))
    target_inner.copy_(source)
    return target


def in_half(operation):
    """The operation in autocast's type."""
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value):
        floating = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(torch.get_autocast_dtype(NAME)) if floating else value

    def run(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    return run


def local_scalar(tensor):
    return tensor.inner.item()


for name, kernel in (
    ("empty.memory_format", empty),
    ("empty_strided", empty_strided),
    ("_copy_from", copy_from),
    ("_local_scalar_dense", local_scalar),
):
    kernels.impl(name, kernel, "PrivateUse1")  # what PyTorch calls where no mode is in force, in `torch.tensor` for one
others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
others.fallback(torch.library.fallthrough_kernel)
for name in IN_HALF:
    kernels.impl(name, in_half(getattr(aten, name).default), "AutocastPrivateUse1")


def pytest_configure() -> None:
    from rsvlm.kernels import infonce, tiles
    from rsvlm.models import loading, zoo

    loading.choose_device = lambda name="auto": DEVICE
    zoo.load_encoder.__defaults__ = (DEVICE,)
    infonce.TILE[NAME], tiles.PAIR_VALUES[NAME] = infonce.TILE["cuda"], tiles.PAIR_VALUES["cuda"]


@pytest.fixture(autouse=True)
def on_the_second_device():
    with Watch() as watch:
        yield
    assert watch.count, "nothing was computed on the second device"
