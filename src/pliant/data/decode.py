"""Any image as 32 x 32 x 3 bytes, many at a time.

    image -> first frame -> RGB -> 32 x 32 by the box filter: each pixel is the mean of the area that it covers

The whole image is resized, without cropping: one that is not square is distorted. Transparency is dropped, 16 bits are cut
to the upper 8, CMYK is converted as Pillow does, and orientation tags are not followed. A smaller image is enlarged by the
same filter, which repeats pixels.

Numbers of 8, 10, 12 or 14 bits in a file of 16 would become black, or nearly, and cannot be told from a dark image. So the range
is checked per data set, not per image: where none of its images of 16 bits reaches a quarter of white, the data set is refused.
A single image that uses 8 bits or fewer would be completely black, and is refused.

Source: P. Chrabaszcz, I. Loshchilov, F. Hutter, "A downsampled variant of ImageNet as an alternative to the CIFAR
datasets", arXiv:1707.08819, 2017: ImageNet32 by the box filter.

Images are decoded by fresh Python processes that answer over pipes: nothing is inherited (no fork), the caller's script
is not imported again (as `multiprocessing` does), and they end when their parent does.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from pliant.base.choices import shortened
from pliant.data.images import DataError
from pliant.data.listing import open_zip

SIDE = 32  # pixels
_BYTES = SIDE * SIDE * 3
_CHUNK = 256  # images per request
_WORTH_A_PROCESS = 4 * _CHUNK
_FORMATS = ("JPEG", "JPEG2000", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "TGA", "PPM")  # none runs another program
_QUARTER = 1 << 14  # of white, in 16 bits
_SAMPLE_FORMAT, _SIGNED = 339, 2  # a tag of TIFF, and what it says of numbers with a sign
_COMMAND = "from pliant.data.decode import serve; serve()"


def reduced(encoded: bytes) -> bytes:
    """The image in a file, (32, 32, 3) in C order. Raises what Pillow raises where it cannot be read.

    And ValueError where its pixels have 16 bits or more of which too few are used: it is judged as a data set of its own.
    """
    pixels, brightest = _reduced(encoded)
    if not _uses_16_bits(brightest):
        raise _unused(16, brightest)
    return pixels


def _reduced(encoded: bytes) -> tuple[bytes, int]:
    """The image, and the brightest of its numbers where they have 16 bits, else 0."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata; what cannot be decoded raises
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.init()
        image: Any = Image.open(io.BytesIO(encoded), formats=[each for each in _FORMATS if each in Image.OPEN])
        _check_signs(image)
        cut = any(";16" in str(arguments) for *_, arguments in image.tile)  # by Pillow, where it has colors
        image.load()
        brightest = 0
        if image.mode.startswith("I"):
            gray = np.asarray(image)
            image, brightest = Image.fromarray(upper_byte(gray)), int(gray.max())
            if 0 < brightest <= 0xFF:
                raise _unused(32 if gray.dtype.itemsize == 4 else 16, brightest)
        elif image.mode == "F":
            raise ValueError("its pixels are fractions: convert it to 8 bits")
        elif cut:
            upper = max(
                high for band, (_, high) in zip(image.getbands(), image.getextrema(), strict=True) if band != "A"
            )
            brightest = upper << 8 | 0xFF
            if not upper:
                raise _unused(16, brightest)
        elif image.mode == "P":
            image = image.convert("RGBA")
        image = image.convert("RGB")
        if image.size != (SIDE, SIDE):
            image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
        return image.tobytes(), brightest


def _check_signs(image: Any) -> None:
    """Raise ValueError for numbers that Pillow would take for others: with a sign, or of 16 bits where 0 is white."""
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    bits: tuple[int, ...] = tags.get(258, (1,))
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()) and max(bits) <= 16:
        raise ValueError("its pixels are numbers with a sign: convert it to 8 bits")
    if tags.get(262) == 0 and max(bits) == 16:
        raise ValueError("its pixels have 16 bits, of which 0 is white: convert it to 8")


def _unused(bits: int, brightest: int) -> ValueError:
    return ValueError(
        f"its pixels have {bits} bits, of which {max(8, brightest.bit_length())} are used: convert it to 8"
    )


def _uses_16_bits(brightest: int) -> bool:
    """Whether numbers of 16 bits, the largest of which this is, are what they say; black is black in any."""
    return brightest == 0 or brightest >= _QUARTER


def upper_byte(gray: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The upper 8 of 16 bits. Raises ValueError where a pixel has more.

    >>> upper_byte(np.array([[0, 255, 256, 65535]]))
    array([[  0,   0,   1, 255]], dtype=uint8)
    """
    if gray.min() < 0 or gray.max() > 0xFFFF:
        raise ValueError("its pixels have 32 bits: convert it to 8 or 16")
    return (gray.astype(np.uint16) >> 8).astype(np.uint8)


class _Chunk(NamedTuple):
    """Images, reduced, and the brightest number of those of 16 bits, with its image; 0 where there are none."""

    pixels: bytes
    brightest: tuple[int, str]


def decoded(source: Path, names: Sequence[str], processes: int | None = None) -> Iterator[bytes]:
    """The named images of a folder or zip, reduced, in order, some hundreds at a time.

    Raises DataError, naming the image, where one cannot be read, and, after the last, where those of 16 bits do not use them.
    `processes`: one per core by default; a few images are not worth any and are decoded here.
    """
    brightest = (0, "")
    for chunk in _chunks(source, names, processes):
        brightest = max(brightest, chunk.brightest)
        yield chunk.pixels
    value, name = brightest
    if not _uses_16_bits(value):
        raise DataError(
            f"{source}: its images of 16 bits use {value.bit_length()} of them at most (the brightest is '{name}'), and would "
            "be all but black: convert them to 8"
        )


def _chunks(source: Path, names: Sequence[str], processes: int | None) -> Iterator[_Chunk]:
    chunks = [names[at : at + _CHUNK] for at in range(0, len(names), _CHUNK)]
    if len(names) < _WORTH_A_PROCESS:
        with _reader(source) as read:
            yield from (_all_reduced(source, read, chunk) for chunk in chunks)
        return
    count = min(processes or _cores(), len(chunks))
    with _workers(source, count) as idle, ThreadPoolExecutor(count) as threads:
        yield from threads.map(partial(_ask, idle, source), chunks)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _all_reduced(source: Path, read: Callable[[str], bytes], names: Sequence[str]) -> _Chunk:
    images: list[bytes] = []
    brightest = (0, "")
    for name in names:
        try:
            pixels, own = _reduced(read(name))
        except Exception as error:  # a damaged image may raise nearly anything in its decoder
            why = f"{type(error).__name__}: {error}"
            raise DataError(
                f"{source}: '{shortened(name, 200)}' cannot be read as an image ({why}): get it again, or remove it"
            ) from None
        images.append(pixels)
        brightest = max(brightest, (own, name))
    return _Chunk(b"".join(images), brightest)


@contextmanager
def _reader(source: Path) -> Generator[Callable[[str], bytes]]:
    """How to read a file of the folder or zip. A zip's checksums are compared as its files are read."""
    if source.is_dir():
        yield lambda name: (source / name).read_bytes()
        return
    with open_zip(source) as archive:
        yield archive.read


@contextmanager
def _workers(source: Path, count: int) -> Generator[SimpleQueue[subprocess.Popen[bytes]]]:
    """Processes that wait for requests; -P: what lies in the working folder is not imported."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-P", "-c", _COMMAND, str(source)]
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            started.append(process)
            idle.put(process)
        yield idle
    finally:
        for process in started:
            process.kill()
            process.communicate()  # closes the pipes, and waits


def _ask(idle: SimpleQueue[subprocess.Popen[bytes]], source: Path, names: Sequence[str]) -> _Chunk:
    """Have an idle process reduce these images."""
    process = idle.get()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(names).encode() + b"\n")
        process.stdin.flush()
        answer: Any = json.loads(process.stdout.readline() or "{}")
        pixels = process.stdout.read(answer.get("bytes", 0))
    except OSError:
        answer, pixels = {}, b""
    finally:
        idle.put(process)
    if len(pixels) != len(names) * _BYTES:
        silent = f"{source}: a decoder died somewhere from '{names[0]}' to '{names[-1]}': is there memory enough?"
        raise DataError(answer.get("error", silent))
    value, name = answer["brightest"]
    return _Chunk(pixels, (value, name))


def serve() -> None:
    """Answer requests on standard input until it closes: a worker process. Its argument is the folder or zip."""
    source = Path(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    with _reader(source) as read:
        for line in sys.stdin.buffer:
            try:
                pixels, brightest = _all_reduced(source, read, json.loads(line))
                answer = {"bytes": len(pixels), "brightest": brightest}
            except DataError as error:
                pixels, answer = b"", {"error": str(error)}
            try:
                sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + pixels)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                os._exit(0)  # the parent is gone, and nobody is left to tell
