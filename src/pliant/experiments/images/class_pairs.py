"""The stream of Continual ImageNet: pairs of classes, one after the other.

    task t  =  classes order[2 k] and order[2 k + 1],   pass, k = divmod(t, classes // 2)

`order` is a permutation of all classes, drawn for each pass ("anew") or once ("fixed"). The released code reads its orders
from a file that is not public; the published curves show no period of one pass, so "anew" is the default.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pliant.data import ImageSet
from pliant.streams import generator

Order = Literal["anew", "fixed"]
Places = NDArray[np.int64]

SIDE = 32  # pixels


class Pairs:
    """The tasks of a data set: which classes, which images, in which batches. Looked up by number, nothing is kept."""

    def __init__(
        self,
        data: ImageSet,
        *,
        train_images: int,
        test_images: int,
        batch_size: int,
        order: Order = "anew",
        left_out: int = 0,
    ) -> None:
        self.train, self.test = train_images, test_images
        self.order, self.batch_size = order, batch_size
        self._parts = [data.train] if data.test is None else [data.train, data.test]
        shapes = {part.pixels.shape[1:] for part in self._parts}
        if shapes != {(SIDE, SIDE, 3)}:
            raise ValueError(f"'{data.name}' has images of {shapes}; the network takes {SIDE}x{SIDE} in color")
        labels = np.concatenate([part.labels for part in self._parts])
        self._places = [np.flatnonzero(labels == number) for number in range(len(data.train.classes))]
        for name, places in zip(data.train.classes, self._places, strict=True):
            if len(places) < self.train + self.test + left_out:
                raise ValueError(
                    f"class '{name}' of '{data.name}' has {len(places)} images, fewer than train_images + test_images + "
                    f"left_out ({self.train} + {self.test} + {left_out}): set them lower"
                )
        self._places = [places[: len(places) - left_out] for places in self._places]
        if len(self._places) < 2:
            raise ValueError(f"'{data.name}' has {len(self._places)} class; a task takes two")

    def classes(self, seed: int, task: int) -> tuple[int, int]:
        """The two classes of a task. With an odd number of classes each pass leaves one out."""
        turn, place = divmod(task, len(self._places) // 2)
        turn = turn if self.order == "anew" else 0
        order = generator(seed, "class order", turn).permutation(len(self._places))
        return int(order[2 * place]), int(order[2 * place + 1])

    def images(self, seed: int, task: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """To learn from, (2 train, 32, 32, 3), and to be tested on, (2 test, 32, 32, 3); in each the first half is class 0."""
        places = [self._places[number] for number in self.classes(seed, task)]
        learn = np.concatenate([each[: self.train] for each in places])
        test = np.concatenate([each[-self.test :] for each in places])
        return self._pixels(learn), self._pixels(test)

    def batches(self, seed: int, task: int, epoch: int) -> Places:
        """Which images each step of an epoch sees, (steps, batch)."""
        order = generator(seed, "batches", task, epoch).permutation(2 * self.train)
        return order.reshape(-1, self.batch_size)

    def _pixels(self, places: Places) -> NDArray[np.uint8]:
        """Read from the parts as if they were one."""
        found = np.empty((len(places), SIDE, SIDE, 3), np.uint8)
        first = 0
        for part in self._parts:
            here = (places >= first) & (places < first + len(part))
            found[here] = part.pixels[places[here] - first]
            first += len(part)
        return found
