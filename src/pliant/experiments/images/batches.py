"""Images that stay bytes on the device, and the mini-batches made of them there.

    batch   = (pixels[chosen] / 255 - mean) / std              (batch, channels, h, w), channels_last, by channel
    augment = rotate(crop(reflect-pad(flip(x), 4)))            flip: p = 1/2; crop: one of 9 x 9 places;
                                                               rotation: [0, 15) degrees counter-clockwise, nearest pixel

A nearest-pixel rotation, a crop of a reflected border and a flip each only say which pixel goes where. So augmentation is
one table of sources, and a batch is one gather of bytes. What a rotation leaves empty is 0 after normalization.

Random numbers are looked up by (seed, task, epoch), not consumed: nothing needs to be stored to go on in mid-epoch.

Source: Dohare et al., Nature 632 (2024), class-incremental CIFAR-100. Departures: none in what is done; the released code
does it image by image in worker processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pliant.data.images import ImageSet
from pliant.streams import generator

PADDING = 4  # pixels of reflected border that a crop may reach into
DEGREES = 15.0  # the largest rotation
CIFAR_100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))  # mean and std of its channels, as released


@dataclass(frozen=True)
class Scale:
    """What normalizes a image: mean and standard deviation of each channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(pixels: NDArray[np.uint8]) -> Scale:
        """Of the pixels themselves, (n, h, w, channels)."""
        bytes_by_channel = pixels.reshape(-1, pixels.shape[-1])
        counts = [np.bincount(channel, minlength=256) for channel in bytes_by_channel.T]
        levels = np.arange(256) / 255.0
        means = [float(count @ levels / count.sum()) for count in counts]
        spreads = [
            float(count @ (levels - mean) ** 2 / count.sum()) ** 0.5 for count, mean in zip(counts, means, strict=True)
        ]
        return Scale(tuple(means), tuple(max(spread, 1e-6) for spread in spreads))


@dataclass(frozen=True)
class Augmentation:
    """What befalls each image of an epoch; arrays of length n."""

    flip: NDArray[np.bool_]
    down: NDArray[np.int64]  # of the crop's corner in the padded image, 0 to 8
    right: NDArray[np.int64]
    degrees: NDArray[np.float32]

    @staticmethod
    def draw(count: int, seed: int, *words: str | int) -> Augmentation:
        """Looked up by name: the same words give the same numbers."""
        draws = generator(seed, "augmentation", *words)
        down, right = draws.integers(0, 2 * PADDING + 1, (2, count))
        return Augmentation(draws.random(count) < 0.5, down, right, (DEGREES * draws.random(count)).astype(np.float32))

    def __getitem__(self, which: NDArray[np.int64]) -> Augmentation:
        return Augmentation(self.flip[which], self.down[which], self.right[which], self.degrees[which])


class ImageBatches:
    """Images and their labels on one device.

    Args:
        pixels: (n, h, w) or (n, h, w, channels), uint8.
        labels: (n,), integers.
        scale: what normalizes them.
        device: where they live.

    >>> images = ImageBatches(np.zeros((5, 32, 32, 3), np.uint8), np.arange(5), Scale((0.5,) * 3, (0.25,) * 3))
    >>> x, y = images.batch(np.array([4, 0]))
    >>> x.shape, float(x[0, 0, 0, 0]), y.tolist()
    (torch.Size([2, 3, 32, 32]), -2.0, [4, 0])
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.integer],
        scale: Scale,
        device: torch.device | str = "cpu",
    ) -> None:
        count, self.height, self.width = pixels.shape[:3]
        flat = np.ascontiguousarray(pixels).reshape(count, self.height * self.width, len(scale.mean))
        self.pixels = torch.from_numpy(flat).to(device)
        self.channels = len(scale.mean)
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(device)
        self._mean, self._std = (torch.tensor(each, device=device) for each in (scale.mean, scale.std))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, chosen: NDArray[np.int64], augmentation: Augmentation | None = None) -> tuple[Tensor, Tensor]:
        """The chosen images, normalized, (batch, channels, h, w), and their labels, (batch,)."""
        which = torch.from_numpy(chosen).to(self.pixels.device)
        if augmentation is None:
            x = self._normalized(self.pixels[which])
        else:
            source, inside = sources(augmentation, self.height, self.width, self.pixels.device)
            x = self._normalized(self.pixels[which[:, None], source]) * inside[..., None]
        channels_last = x.reshape(len(chosen), self.height, self.width, -1)
        return channels_last.permute(0, 3, 1, 2), self.labels[which]

    def _normalized(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / 255 - self._mean) / self._std


def sources(
    augmentation: Augmentation, height: int, width: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """For each pixel of each augmented image, which pixel it shows, and whether it shows any; (batch, h * w) each.

    A pixel at (row, column) from the centre shows what, before the rotation by t, was at

        (row cos t + column sin t, column cos t - row sin t)
    """
    flip, down, right, degrees = (
        torch.from_numpy(each).to(device)[:, None, None]
        for each in (augmentation.flip, augmentation.down, augmentation.right, augmentation.degrees)
    )
    row = torch.arange(height, device=device)[:, None] - (height - 1) / 2
    column = torch.arange(width, device=device) - (width - 1) / 2
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos(), angle.sin()
    rows = (row * cos + column * sin + (height - 1) / 2).round().long()
    columns = (column * cos - row * sin + (width - 1) / 2).round().long()
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows = _reflected(rows.clamp(0, height - 1) + down - PADDING, height)
    columns = _reflected(columns.clamp(0, width - 1) + right - PADDING, width)
    columns = torch.where(flip, width - 1 - columns, columns)
    return (rows * width + columns).flatten(1), inside.flatten(1)


def _reflected(place: Tensor, size: int) -> Tensor:
    """A place up to PADDING beyond either end, mirrored at the outermost pixel."""
    place = place.abs()
    return torch.where(place >= size, 2 * (size - 1) - place, place)


@dataclass(frozen=True)
class Split:
    """The three parts of a data set; in each, the images of one class lie together, classes in the order that was asked.

    Labels are places in that order: so the images of the first k classes are the first of each part, labelled 0 to k - 1.
    """

    train: ImageBatches
    validation: ImageBatches
    test: ImageBatches


def split_by_class(
    images: ImageSet,
    order: NDArray[np.integer],
    validation: int,
    train: int,
    test: int,
    device: torch.device | str = "cpu",
) -> Split:
    """Of each class in `order`: the first `validation` images, the next `train`, and `test` of the test part.

    Where a set has no test part, the last `test` images of a class are held out as one. Images are normalized by the
    article's constants for CIFAR-100, else by the mean and deviation of the training images.
    Raises ValueError where a class has too few images, or there are too few classes.
    """
    check_enough(images, len(order), validation, train, test)
    own = _places_of_class(images.train.labels, order)
    tested = _places_of_class(images.test.labels, order) if images.test else own
    source = images.train.pixels
    trained = source[np.concatenate([places[validation : validation + train] for places in own])]
    scale = Scale(*CIFAR_100) if images.name == "cifar-100" else Scale.of(_with_channels(trained))

    def part(pixels: NDArray[np.uint8], count: int) -> ImageBatches:
        return ImageBatches(_with_channels(pixels), np.repeat(np.arange(len(order)), count), scale, device)

    validated = source[np.concatenate([places[:validation] for places in own])]
    if images.test:
        held = images.test.pixels[np.concatenate([places[:test] for places in tested])]
    else:
        held = source[np.concatenate([places[len(places) - test :] for places in own])]
    return Split(part(trained, train), part(validated, validation), part(held, test))


def _places_of_class(labels: NDArray[np.int64], order: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """Where the images of each class in `order` are."""
    return [np.flatnonzero(labels == number) for number in order]


def check_enough(images: ImageSet, classes: int, validation: int, train: int, test: int) -> None:
    """Raise ValueError where a set cannot be split so: too few classes, or too few images of one of the first `classes`."""
    have = len(images.train.classes)
    if classes > have:
        raise ValueError(f"'{images.name}' has {have} classes, and {classes} are wanted: ask for fewer")
    parts = {"validation": validation, "learning": train, "test": 0 if images.test else test}
    _check_least(f"a class of '{images.name}'", images.train.labels, classes, parts)
    if images.test:
        _check_least(f"a class of the test part of '{images.name}'", images.test.labels, classes, {"test": test})


def _check_least(what: str, labels: NDArray[np.int64], classes: int, wanted: dict[str, int]) -> None:
    least = int(np.bincount(labels, minlength=classes)[:classes].min())
    if least < sum(wanted.values()):
        asked = " + ".join(f"{count} for {name}" for name, count in wanted.items() if count)
        raise ValueError(f"{what} has {least} images, and {asked} are wanted: lower the *_images settings")


def _with_channels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, h, w, channels), grey images with one channel."""
    return pixels if pixels.ndim == 4 else pixels[..., None]
