"""Any picture as 32 x 32 x 3 bytes, many at a time.

    picture -> first frame -> RGB -> 32 x 32 by the box filter: each pixel is the mean of the area that it covers

The whole picture is resized, without cropping: one that is not square is squeezed. Transparency is dropped, 16 bits of
grey are cut to the upper 8, CMYK is converted as Pillow does, and orientation tags are not followed. A smaller picture is
enlarged by the same filter, which repeats pixels.

Source: P. Chrabaszcz, I. Loshchilov, F. Hutter, "A downsampled variant of ImageNet as an alternative to the CIFAR
datasets", arXiv:1707.08819, 2017: ImageNet32 by the box filter.

Pictures are decoded by fresh Python processes that answer over pipes: nothing is inherited (no fork), the caller's script
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
from typing import Any

import numpy as np

from pliant.data.images import DataError
from pliant.data.listing import open_zip

SIDE = 32  # pixels
_BYTES = SIDE * SIDE * 3
_CHUNK = 256  # pictures per request
_WORTH_A_PROCESS = 4 * _CHUNK
_FORMATS = ("JPEG", "JPEG2000", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "TGA", "PPM")  # none runs another program
_COMMAND = "from pliant.data.decode import serve; serve()"


def reduced(encoded: bytes) -> bytes:
    """The picture in a file, (32, 32, 3) in C order. Raises what Pillow raises where it cannot be read."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata; what cannot be decoded raises
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.init()
        image: Any = Image.open(io.BytesIO(encoded), formats=[each for each in _FORMATS if each in Image.OPEN])
        image.load()
        if image.mode.startswith("I"):
            grey = np.asarray(image)
            if image.mode == "I" and grey.max() <= 0xFF:
                raise ValueError("its pixels have 32 bits, of which 8 are used: convert it to 8")
            image = Image.fromarray(upper_byte(grey))
        elif image.mode == "F":
            raise ValueError("its pixels are fractions: convert it to 8 bits")
        elif image.mode == "P":
            image = image.convert("RGBA")
        image = image.convert("RGB")
        if image.size != (SIDE, SIDE):
            image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
        return image.tobytes()


def upper_byte(grey: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The upper 8 of 16 bits. Raises ValueError where a pixel has more.

    >>> upper_byte(np.array([[0, 255, 256, 65535]]))
    array([[  0,   0,   1, 255]], dtype=uint8)
    """
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise ValueError("its pixels have 32 bits: convert it to 8 or 16")
    return (grey.astype(np.uint16) >> 8).astype(np.uint8)


def decoded(source: Path, names: Sequence[str], processes: int | None = None) -> Iterator[bytes]:
    """The named pictures of a folder or zip, reduced, in order, some hundreds at a time.

    Raises DataError, naming the picture, where one cannot be read. `processes`: one per core by default; a few pictures
    are not worth any and are decoded here.
    """
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


def _all_reduced(source: Path, read: Callable[[str], bytes], names: Sequence[str]) -> bytes:
    pixels: list[bytes] = []
    for name in names:
        try:
            pixels.append(reduced(read(name)))
        except Exception as error:  # a damaged picture may raise nearly anything in its decoder
            why = f"{type(error).__name__}: {error}"
            raise DataError(
                f"{source}: '{name}' cannot be read as a picture ({why}): get it again, or remove it"
            ) from None
    return b"".join(pixels)


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


def _ask(idle: SimpleQueue[subprocess.Popen[bytes]], source: Path, names: Sequence[str]) -> bytes:
    """Have an idle process reduce these pictures."""
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
    return pixels


def serve() -> None:
    """Answer requests on standard input until it closes: a worker process. Its argument is the folder or zip."""
    source = Path(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    with _reader(source) as read:
        for line in sys.stdin.buffer:
            try:
                pixels = _all_reduced(source, read, json.loads(line))
                answer = {"bytes": len(pixels)}
            except DataError as error:
                pixels, answer = b"", {"error": str(error)}
            try:
                sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + pixels)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                os._exit(0)  # the parent is gone, and nobody is left to tell
