"""Data sets: found, checked, cached.

>>> from pliant import data
>>> [name for name in data.CATALOG]
['mnist', 'fashion-mnist', 'cifar-10', 'cifar-100', 'tiny-imagenet', 'imagenet']

`load` returns one by name; `available` says whether it can be loaded without a download. Images are bytes in one array,
memory-mapped if large, and every set has a hash: two runs with the same hash learn from the same bytes in the same order.
"""

from pliant.data.catalog import CATALOG
from pliant.data.images import DataError, Images, ImageSet, fingerprint, image_set
from pliant.data.sets import KnownSet, add, available, known_sets, load, where

__all__ = [
    "CATALOG",
    "DataError",
    "ImageSet",
    "Images",
    "KnownSet",
    "add",
    "available",
    "fingerprint",
    "image_set",
    "known_sets",
    "load",
    "where",
]
