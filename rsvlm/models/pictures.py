"""Images of any kind, read block by block."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from rsvlm.data.images import EXTENSIONS, MAX_PIXELS, ImageError, as_rgb, open_image
from rsvlm.progress import progress

A_BLOCK = 256  # images in memory at a time
Picture = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Block:
    """Some images of a list, read.

    Attributes:
        numbers, names, pictures: of those that could be read, RGB; numbers count through the whole list.
        troubles: number -> (name, why it could not be read) of the others.
    """

    numbers: list[int]
    names: list[str]
    pictures: list[Image.Image]
    troubles: dict[int, tuple[str, str]]


def read_blocks(images: Picture | Iterable[Picture], unreadable: str) -> Iterator[Block]:
    """All images in what ``caption`` takes, A_BLOCK at a time, fewer where they are large: MAX_PIXELS and one more.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without an image.
        ImageError: a file that is no whole image, where ``unreadable`` is "raise".
        ValueError: ``unreadable`` is neither "raise" nor "keep", or a name comes twice.
    """
    if unreadable not in ("raise", "keep"):
        raise ValueError(f"unreadable: {unreadable!r} is neither 'raise' nor 'keep'")
    listed = list_images(images)
    block, pixels = Block([], [], [], {}), 0
    with progress(total=len(listed), desc="images", disable=len(listed) <= A_BLOCK) as bar:
        for number, (name, image) in enumerate(listed):
            try:
                picture = read_picture(image)
            except ImageError as error:
                if unreadable == "raise":
                    raise
                block.troubles[number] = name, str(error)
            else:
                block.numbers.append(number)
                block.names.append(name)
                block.pictures.append(picture)
                pixels += picture.width * picture.height
            done = len(block.names) + len(block.troubles)
            if done == A_BLOCK or pixels >= MAX_PIXELS or number == len(listed) - 1:
                yield block
                bar.update(done)
                block, pixels = Block([], [], [], {}), 0


def list_images(images: Picture | Iterable[Picture]) -> list[tuple[str, Picture]]:
    """(name, image) of all images in what ``caption`` takes; folders are listed, nothing is opened.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without an image.
        ValueError: a name that comes twice.
    """
    listed: list[tuple[str, Picture]] = []
    given = [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else images
    for number, one in enumerate(given, start=1):
        if isinstance(one, Image.Image | np.ndarray):
            listed.append((f"image {number}", one))
            continue
        path = Path(one)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
            if not inside:
                raise FileNotFoundError(
                    f"{path}: no image in this folder; files that end in {', '.join(EXTENSIONS)} count"
                )
            listed += [(str(file), file) for file in inside]
        elif path.exists():
            listed.append((str(path), path))
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    names = [name for name, _ in listed]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice}: given twice")
    return listed


def read_picture(image: Picture) -> Image.Image:
    """An RGB image of a path, a PIL image or an array.

    A PIL image is turned by its EXIF orientation and put on white where it is transparent, as a file is.

    Raises:
        ImageError: a file that is no whole image.
        ValueError: an array that is none of (H, W) and (H, W, 3) uint8, or a PIL image of more than 8 bits.
    """
    if isinstance(image, Image.Image):
        if image.mode == "F" or image.mode.startswith("I"):
            raise ValueError(f"a PIL image of mode {image.mode!r}: expected 8 bits a band; scale it to 0..255")
        return as_rgb(ImageOps.exif_transpose(image), sixteen=False, masked=False)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise ValueError(
                f"an array of shape {image.shape} and type {image.dtype}: expected (height, width) or (height, width, 3) "
                "of uint8; choose three bands and scale them to 0..255"
            )
        return Image.fromarray(image).convert("RGB")
    return open_image(image)
