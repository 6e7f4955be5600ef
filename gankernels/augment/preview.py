"""A picture of every transform: ``python -m gankernels.augment --preview [IMAGE]``.

Writes a contact sheet: a row for each of the 18 transforms of adaptive discriminator augmentation
(Karras et al. 2020, arXiv 2006.06676, appendix B), a column for each of a few percentiles of its
strength. Without an image a synthetic one is drawn, of which every turn, shift and color shows.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gankernels._checks import check_count, check_number, describe, kind
from gankernels.augment.pipe import ADAPipe

__all__ = ["PERCENTILES", "ROWS", "contact_sheet", "read_image", "synthetic_image"]

PERCENTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Values = dict[str, float]  # those of Transform.named(), of one image


class Row(NamedTuple):
    """A transform by itself, and the text of its strength."""

    label: str
    settings: dict[str, Any]  # of a pipe without a preset
    say: Callable[[Values], str]


# --- the rows ------------------------------------------------------------------------------------


def _degrees(name: str) -> Callable[[Values], str]:
    return lambda v: f"{_signed(math.degrees(v[name]))}°"


def _factor(name: str) -> Callable[[Values], str]:
    return lambda v: f"x {v[name]:.2f}"


def _percent(name: str) -> Callable[[Values], str]:
    return lambda v: f"{_signed(100 * v[name])} % x and y"


def _signed(x: float) -> str:
    return f"{round(x):+d}" if round(x) else "0"


def _band(i: int, label: str) -> Row:
    bands = tuple(float(k == i) for k in range(4))
    settings = {"imgfilter": 1.0, "imgfilter_bands": bands}
    return Row(f"frequencies: {label}", settings, _factor(f"band_{i}"))


ROWS = (
    Row("mirror", {"xflip": 1.0}, lambda v: "mirrored" if v["xflip"] else "as it is"),
    Row("quarter turns", {"rotate90": 1.0}, lambda v: f"{90 * v['rotate90']:.0f}°"),
    Row("shift by whole pixels", {"xint": 1.0}, _percent("xint_x")),
    Row("size", {"scale": 1.0}, _factor("scale")),
    Row("rotation", {"rotate": 1.0}, _degrees("rotate_before")),
    Row("stretch", {"aniso": 1.0}, lambda v: f"x {v['aniso']:.2f} wide"),
    Row("shift, fractional", {"xfrac": 1.0}, _percent("xfrac_x")),
    Row("brightness", {"brightness": 1.0}, lambda v: f"{v['brightness']:+.2f}"),
    Row("contrast", {"contrast": 1.0}, _factor("contrast")),
    Row(
        "light and dark swapped",
        {"lumaflip": 1.0},
        lambda v: "swapped" if v["lumaflip"] else "as it is",
    ),
    Row("hue", {"hue": 1.0}, _degrees("hue")),
    Row("saturation", {"saturation": 1.0}, _factor("saturation")),
    _band(0, "lowest"),
    _band(1, "low"),
    _band(2, "high"),
    _band(3, "highest"),
    Row("noise", {"noise": 1.0}, lambda v: f"deviation {v['noise']:.2f}"),
    Row("cutout", {"cutout": 1.0}, lambda v: f"around {100 * v['cutout_x']:.0f} %"),
)


# --- the image -----------------------------------------------------------------------------------


def synthetic_image(size: int = 128) -> Tensor:
    """A colorful picture without any symmetry: (3, size, size), float32, in [-1, 1].

    Hues from left to right, lighter upwards; rings; a checkerboard; an F.
    """
    check_count("synthetic_image", "size", size)
    along = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    x, y = along.expand(size, size), along[:, None].expand(size, size)
    thirds = torch.arange(3.0)[:, None, None] / 3
    image = 0.5 + 0.35 * (2 * math.pi * (0.8 * x - thirds)).cos() + 0.3 * (0.5 - y)

    def put(where: Tensor, color: Tensor | float) -> None:
        image.copy_(torch.where(where, color, image))

    far = ((x - 0.3).square() + (y - 0.68).square()).sqrt()
    put(far < 0.24, (0.5 + 0.5 * (2 * math.pi * far / 0.08).cos()).expand(3, size, size))
    checker = ((x * 20).floor() + (y * 20).floor()) % 2
    put((x > 0.6) & (x < 0.95) & (y > 0.6) & (y < 0.95), checker.expand(3, size, size))
    stem = (x > 0.56) & (x < 0.64) & (y > 0.08) & (y < 0.5)
    upper = (x >= 0.64) & (x < 0.86) & (y > 0.08) & (y < 0.16)
    lower = (x >= 0.64) & (x < 0.78) & (y > 0.26) & (y < 0.34)
    put(stem | upper | lower, 1.0)
    return image.clamp(0, 1) * 2 - 1


def read_image(path: str | Path, size: int = 128) -> Tensor:
    """An image of a file, its middle as a square: (3, size, size), float32, in [-1, 1].

    Args:
        path: of any format that Pillow reads. Colors are taken as RGB; transparency is dropped.
        size: to which the square is resampled.

    Raises:
        OSError: if there is no such file, or no image in it.
        ImportError: if Pillow is missing.
    """
    check_count("read_image", "size", size)
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
            square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no file {path}; name another one, or none for a synthetic image"
        ) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(
            f"{path} cannot be read as an image ({str(error) or kind(error)}); give a PNG or JPEG "
            "file, or none for a synthetic image"
        ) from error
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 3).permute(2, 0, 1).float() / 127.5 - 1


# --- the contact sheet ---------------------------------------------------------------------------

_DPI = 100
_LEFT, _TOP, _MARGIN = 190, 78, 14  # of the grid, in pixels
_GAP, _CAPTION = 6, 18  # between columns, and below every image


def contact_sheet(
    image: Tensor,
    file: str | Path = "contact_sheet.png",
    *,
    percentiles: Sequence[float] = PERCENTILES,
    seed: int = 0,
    progress: Callable[[Sequence[Row]], Iterable[Row]] | None = None,
) -> None:
    """Write what every transform does to an image: rows of ``ROWS``, columns of percentiles.

    The first column is the image as it is. Pixels are not resampled; what is beyond [-1, 1] is
    shown as black and white.

    Args:
        image: (3, H, W), floating-point, in [-1, 1].
        file: its name; the suffix says the format.
        percentiles: above 0 and below 1; see :meth:`gankernels.augment.ADAPipe.preview`.
        seed: of the noise.
        progress: wraps the rows that are gone through, as tqdm does.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
        ImportError: if matplotlib is missing.
        OSError: if the file cannot be written.
    """
    op = "contact_sheet"
    if not isinstance(image, Tensor) or not image.is_floating_point():
        got = describe(image) if isinstance(image, Tensor) else kind(image)
        raise TypeError(f"{op}: expected image to be a floating-point tensor, got {got}")
    if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"{op}: expected image of shape (3, H, W), got {tuple(image.shape)}")
    for percentile in percentiles:
        check_number(op, "every percentile", percentile, positive=True)
        if percentile >= 1:
            raise ValueError(f"{op}: expected every percentile to be below 1, got {percentile}")
    from matplotlib.figure import Figure
    from matplotlib.image import pil_to_array
    from PIL import Image

    image = image.detach().float().cpu()
    height, width = image.shape[1:]
    across, down = width + _GAP, height + _CAPTION
    sheet_width = _LEFT + (1 + len(percentiles)) * across + _MARGIN
    sheet_height = _TOP + len(ROWS) * down + _MARGIN
    sheet = torch.ones(3, sheet_height, sheet_width)
    figure = Figure(figsize=(sheet_width / _DPI, sheet_height / _DPI), dpi=_DPI)

    def write(x: float, y: float, words: str, size: float, **options: Any) -> None:
        figure.text(x / sheet_width, 1 - y / sheet_height, words, size=size, **options)

    write(12, 26, "Every transform by itself", 12)
    columns: tuple[float | None, ...] = (None, *percentiles)
    for k, q in enumerate(columns):
        name = "original" if q is None else f"{100 * q:g} %"
        write(_LEFT + k * across + width / 2, _TOP - 10, name, 10, ha="center")
    write(_LEFT - 12, _TOP - 10, "percentile of strength:", 8, ha="right", color="#5b6675")
    for i, row in enumerate(ROWS if progress is None else progress(ROWS)):
        top = _TOP + i * down
        write(_LEFT - 12, top + height / 2, row.label, 10, ha="right", va="center")
        pipe = ADAPipe(None, **row.settings)
        for k, q in enumerate(columns):
            left = _LEFT + k * across
            shown = image
            if q is not None:
                generator = torch.Generator().manual_seed(seed)
                transform = pipe.sample(1, percentile=q, generator=generator)
                shown = transform(image[None])[0]
                label = row.say({name: x.item() for name, x in transform.named().items()})
                size = 7 * min(1, across / 80)  # a caption has the width of its picture
                write(
                    left + width / 2, top + height + 11, label, size, ha="center", color="#5b6675"
                )
            sheet[:, top : top + height, left : left + width] = shown
    pixels = ((sheet.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    data = bytes(pixels.flatten().tolist())
    figure.figimage(pil_to_array(Image.frombytes("RGB", (sheet_width, sheet_height), data)))
    try:
        figure.savefig(file, dpi=_DPI)
    except (OSError, ValueError) as error:  # matplotlib's for a suffix that it does not know
        raise OSError(f"cannot write {file} ({error}); name a PNG file in a folder") from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gankernels.augment",
        description="What the transforms of adaptive discriminator augmentation do to an image.",
    )
    parser.add_argument(
        "--preview",
        nargs="?",
        const="",
        required=True,
        metavar="IMAGE",
        help="write a contact sheet of every transform (default: of a synthetic image)",
    )
    parser.add_argument(
        "--out", default="contact_sheet.png", help="the file (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, default=128, help="of every picture, in pixels (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        from tqdm import tqdm

        if not 16 <= args.size <= 1024:
            raise ValueError(f"expected --size from 16 to 1024, got {args.size}")
        image = read_image(args.preview, args.size) if args.preview else synthetic_image(args.size)
        # Seen where it takes longer than a second, at a terminal.
        bar = partial(tqdm, desc="transforms", leave=False, delay=1, disable=None)
        contact_sheet(image, args.out, progress=bar)
    except ImportError as error:
        print(
            f"{parser.prog}: {error.name} is missing; pip install 'gankernels[bench]'",
            file=sys.stderr,
        )
        return 2
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0
