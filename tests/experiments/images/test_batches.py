import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pliant.experiments.images.batches import Augmentation, ImageBatches, Scale

SCALE = Scale((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def images(count=40, size=32, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return pixels, ImageBatches(pixels, np.arange(count) % 7, SCALE)


def one_by_one(image, flip, down, right, degrees):
    """Flip, pad by reflection, crop and rotate a normalized image (h, w, channels), each step on its own."""
    if flip:
        image = image[:, ::-1]
    size = len(image)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    cropped = padded[down : down + size, right : right + size]
    turned, centre = np.zeros_like(cropped), np.float32((size - 1) / 2)
    angle = torch.deg2rad(torch.tensor(degrees))
    cos, sin = (f(angle).numpy() for f in (torch.cos, torch.sin))
    for i in range(size):
        for j in range(size):
            row, column = np.float32(i) - centre, np.float32(j) - centre
            r, c = round(float(row * cos + column * sin + centre)), round(float(column * cos - row * sin + centre))
            if 0 <= r < size and 0 <= c < size:
                turned[i, j] = cropped[r, c]
    return turned


@pytest.mark.parametrize("size", [32, 9])
def test_one_gather_equals_flip_pad_crop_and_rotation_picture_by_picture_exactly(size):
    pixels, on_device = images(size=size)
    augmentation = Augmentation.draw(40, 3, 1, 2)
    chosen = np.random.default_rng(1).permutation(40)[:30]
    found, labels = on_device.batch(chosen, augmentation[chosen])
    plain = (torch.from_numpy(pixels).float() / 255 - torch.tensor(SCALE.mean)) / torch.tensor(SCALE.std)
    for place, number in enumerate(chosen):
        a = augmentation
        expected = one_by_one(plain[number].numpy(), a.flip[number], a.down[number], a.right[number], a.degrees[number])
        assert_close(found[place].permute(1, 2, 0).numpy(), expected, rtol=0, atol=0)
    assert labels.tolist() == (chosen % 7).tolist()


def test_a_rotation_turns_counter_clockwise():
    pixels = np.zeros((1, 31, 31, 3), np.uint8)
    pixels[0, 15, 27] = 255  # right of the centre, 12 pixels away
    turned = Augmentation(np.array([False]), np.array([4]), np.array([4]), np.array([15.0], np.float32))
    x, _ = ImageBatches(pixels, np.zeros(1, int), Scale((0.0,) * 3, (1.0,) * 3)).batch(np.array([0]), turned)
    rows, columns = x[0, 0].nonzero().T.tolist()
    up, right = 12 * math.sin(math.radians(15)), 12 * math.cos(math.radians(15))
    assert rows == [round(15 - up)]  # higher up: smaller row
    assert columns == [round(15 + right)]


def test_corners_that_a_rotation_leaves_empty_are_zero_after_normalization():
    _, on_device = images(count=1)
    turned = Augmentation(np.array([False]), np.array([4]), np.array([4]), np.array([15.0], np.float32))
    x, _ = on_device.batch(np.array([0]), turned)
    corners = x[0, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert not corners.any()
    assert (x != 0).float().mean() > 0.85


def test_without_augmentation_pixels_are_normalised_by_channel_and_lie_channels_last():
    pixels, on_device = images()
    x, _ = on_device.batch(np.array([3, 1]))
    expected = (pixels[[3, 1]] / 255 - np.array(SCALE.mean)) / np.array(SCALE.std)
    assert_close(x.permute(0, 2, 3, 1).double(), torch.from_numpy(expected), rtol=0, atol=1e-6)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_draws_are_looked_up_by_seed_task_and_epoch():
    first, again, other = (Augmentation.draw(1000, 5, *words) for words in ((2, 3), (2, 3), (3, 2)))
    for one, two in zip(vars(first).values(), vars(again).values(), strict=True):
        assert np.array_equal(one, two)
    assert not np.array_equal(first.degrees, other.degrees)


def test_draws_cover_what_they_should():
    draws = Augmentation.draw(20_000, 0)
    assert draws.flip.mean() == pytest.approx(0.5, abs=0.02)
    assert set(draws.down) == set(draws.right) == set(range(9))
    assert 0 <= draws.degrees.min() < 0.1
    assert 14.9 < draws.degrees.max() <= 15
    assert draws.degrees.mean() == pytest.approx(7.5, abs=0.2)


def test_the_scale_of_pictures_is_the_mean_and_deviation_of_each_channel():
    pixels, _ = images(count=3)
    scale = Scale.of(pixels)
    flat = pixels.reshape(-1, 3) / 255
    assert scale.mean == pytest.approx(flat.mean(0))
    assert scale.std == pytest.approx(flat.std(0))
