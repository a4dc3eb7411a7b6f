"""The image store: every item's picture, decoded and resized once a data set and settings, in one memory-mapped file.

data/<dataset>/<protocol>/images-<hash of the settings>/ holds pixels.npy (items, size, size, 3) uint8, red, green and
blue, and the card images.json, which is written last. A picture is found by its item's id: <folder>/<item id>.jpg (or
.jpeg, .png, .webp), which is how PixelRec's covers are named.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from benchmark.data.dataset import load_dataset
from benchmark.errors import UserError
from benchmark.files import write_atomically, write_text
from benchmark.settings import Settings, validated

FORMAT = 1  # of the store and of what the settings mean; raise it when either changes
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FORMATS = ("JPEG", "PNG", "WEBP")  # the decoders that a file may reach, whatever its name says
_NAMED = 5  # items without a usable picture that an error lists

log = logging.getLogger(__name__)


class ImageSettings(Settings):
    """folder: of the pictures. size: they are brought to size x size pixels, without keeping the ratio of their sides
    (bilinear, as PixelRec's code does). missing: of items without a usable picture, "fail" or "blank", a grey one."""

    folder: str
    size: int = Field(default=224, gt=0)
    missing: Literal["fail", "blank"] = "fail"

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> ImageSettings:
        if not content.get("folder"):
            raise UserError("images: folder is missing: name the folder of the items' pictures, <item id>.jpg each")
        return validated(cls, content, "images")

    def hash(self) -> str:
        """Ten hexadecimal digits that name the store; equal settings have equal ones, on every platform."""
        content = json.dumps({"format": FORMAT, **self.model_dump(mode="json")}, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode("ascii")).hexdigest()[:10]


def images_folder(dataset_folder: Path, settings: ImageSettings) -> Path:
    return dataset_folder / f"images-{settings.hash()}"


def make_images(dataset_folder: Path, settings: ImageSettings) -> Path:
    """Decode and resize the pictures of a prepared data set's items; returns the store's folder."""
    dataset, source = load_dataset(dataset_folder), Path(settings.folder)
    if not source.is_dir():
        raise UserError(f"images.folder {source} is no folder; it must hold a picture an item, <item id>.jpg")
    ids, problems = dataset.item_ids(), []
    folder, digest, started = images_folder(dataset_folder, settings), hashlib.sha256(), time.monotonic()

    def write(path: Path) -> None:
        shape = (len(ids), settings.size, settings.size, 3)
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        for number, item in enumerate(ids):
            found = _pixels(source, item, settings.size)
            if isinstance(found, str):
                problems.append(f"{item} ({found})")
                found = np.full(shape[1:], 128, np.uint8)
            array[number] = found
            digest.update(found.tobytes())
            if (number + 1) % 10_000 == 0:
                rate = (number + 1) / (time.monotonic() - started)
                log.info("%d of %d pictures, %.0f a second", number + 1, len(ids), rate)
        array.flush()
        if problems and settings.missing == "fail":
            more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            raise UserError(
                f"{len(problems)} of {len(ids)} items have no usable picture in {source}: "
                f"{', '.join(problems[:_NAMED])}{more}; add them, or set images.missing to blank"
            )

    (folder / "images.json").unlink(missing_ok=True)  # while the array is replaced, the store is not whole
    write_atomically(folder / "pixels.npy", write)
    card = {
        "format": FORMAT,
        "dataset": dataset.card.name,
        "split_sha256": dataset.card.split_sha256,
        "settings": settings.model_dump(mode="json"),
        "items": len(ids),
        "blank": len(problems),
        "sha256": digest.hexdigest(),
    }
    write_text(folder / "images.json", json.dumps(card, indent=2) + "\n")
    log.info("%d pictures, %d of them blank, in %s", len(ids), len(problems), folder)
    return folder


def _pixels(folder: Path, item: str, size: int) -> np.ndarray[Any, np.dtype[np.uint8]] | str:
    """(size, size, 3) uint8, or what is wrong."""
    from PIL import Image, UnidentifiedImageError

    if Path(item).name != item or item in (".", ".."):
        return "its id is no file name"
    path = next((path for suffix in SUFFIXES if (path := folder / f"{item}{suffix}").is_file()), None)
    if path is None:
        return "no file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except UnidentifiedImageError:
        return f"{path.name} is no JPEG, PNG or WebP file"
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return f"{path.name} has too many pixels"
    except (OSError, ValueError, SyntaxError) as error:  # PIL raises SyntaxError for broken PNG files
        return f"{path.name} is damaged: {' '.join(str(error).split())[:80]}"
    return np.asarray(resized, dtype=np.uint8)


def load_images(folder: Path, size: int) -> torch.Tensor:
    """(size, height, width, 3) uint8 pictures of the catalogue's items, memory-mapped, on the host."""
    mend = "make it again with `python -m benchmark images`"
    if not (folder / "images.json").is_file():
        raise UserError(f"there is no image store {folder}; {mend}")
    try:
        card = json.loads((folder / "images.json").read_text(encoding="utf-8"))
        pixels = np.load(folder / "pixels.npy", mmap_mode="c", allow_pickle=False)  # copy-on-write, as torch wants it
        if card["format"] != FORMAT:
            raise ValueError(f"its format is {card['format']}, this version reads {FORMAT}")
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != size or card["items"] != size:
            raise ValueError(f"pixels.npy is {pixels.dtype}{pixels.shape}, and the data set has {size} items")
        split = json.loads((folder.parent / "dataset.json").read_text(encoding="utf-8"))["split_sha256"]
        if split != card["split_sha256"]:
            raise ValueError("it was made for another preparation of the data set")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the image store {folder} cannot be used ({error}); {mend}") from error
    return torch.from_numpy(pixels)
