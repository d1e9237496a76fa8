"""Shadow memory: labels and addresses per storage.

For every storage there are flat int64 arrays of its length, so that a view of the numbers is a view of the arrays and
every in-place write through a view holds for all others:

    labels       the units that this number was computed from: one array per family of units
    addresses    the element of a parameter that this number is
    sources      the element of a parameter that it is a function of: one array per parameter, see `sources`

Addresses count through all parameters in the order of `named_parameters`, each in its logical order, for any strides.
"""

# pyright: reportPrivateUsage=false
# The identity of a storage and the version of a tensor have no public name in PyTorch.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pliant.units.trace.labels import NONE, compress, ints, values

ADDRESSES = -1  # beside the families, which count from 0; below it the sources, see `source`
Arrays = dict[int, Tensor]
Key = tuple[int, int]


def source(number: int) -> int:
    """Under which key the sources in a parameter are kept; the same function leads back."""
    return -2 - number


@dataclass(eq=False)
class Shadow:
    """The arrays of one storage."""

    length: int
    arrays: Arrays = field(default_factory=Arrays)
    ancestors: int = 0  # bit set of the operations that its numbers depend on
    made_by: int | None = None  # the operation that allocated it
    data: bool = False  # depends on the model's inputs
    nonnegative: bool = False  # no number in it can be below zero
    zero_with: frozenset[int] = frozenset()  # parameters that make all of it zero if they are, see `zeros`
    computed_from: frozenset[int] = frozenset()  # parameters of which it is a function, not a copy
    averaged: bool = False  # the very result of a mean
    rooted: bool = False  # a root was taken after the last mean: a norm, or what was divided by one
    original: tuple[Key, int] | None = None  # storage and version of which it is a plain copy


class Memory:
    """Shadows by storage. Keeps every tensor alive, so that no address is used again while tracing."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.names = list(parameters)
        self.parameters = list(parameters.values())
        self.first: list[int] = []  # address of the first element of each parameter
        self._shadows: dict[Key, Shadow] = {}
        self._alive: list[Tensor] = []
        self._holds: dict[Key, list[int]] = {}
        total = 0
        for number, parameter in enumerate(self.parameters):
            self.first.append(total)
            total += parameter.numel()
            self._holds.setdefault(self.key(parameter), []).append(number)
            self.shadow(parameter)
        self.bounds = torch.tensor(self.first)  # to look up the parameter of an address

    @staticmethod
    def key(tensor: Tensor) -> Key:
        """Storage and element size: complex numbers seen as pairs are another memory."""
        return tensor.untyped_storage()._cdata, tensor.element_size()

    def shadow(self, tensor: Tensor) -> Shadow:
        key = self.key(tensor)
        if key not in self._shadows:
            self._shadows[key] = Shadow(tensor.untyped_storage().nbytes() // tensor.element_size())
            self._alive.append(tensor)
        return self._shadows[key]

    def resized(self, tensor: Tensor) -> None:
        """Numbers were added to a storage: nothing is known of them."""
        shadow = self.shadow(tensor)
        length = tensor.untyped_storage().nbytes() // tensor.element_size()
        if length > shadow.length:
            more = length - shadow.length
            shadow.arrays = {
                key: torch.cat([each, each.new_full((more,), NONE)]) for key, each in shadow.arrays.items()
            }
            shadow.length = length

    def identity(self, tensor: Tensor) -> list[tuple[Key, int]]:
        """Storage and version, then those of what it is a plain copy of."""
        found = [(self.key(tensor), tensor._version)]
        while (original := self._shadows[found[-1][0]].original) is not None and original not in found:
            found.append(original)
        return found

    def holds_parameter(self, tensor: Tensor) -> bool:
        return self.key(tensor) in self._holds

    def is_plain(self, tensor: Tensor) -> bool:
        """Whether the tensor is a view of one contiguous parameter that fills its storage."""
        key = self.key(tensor)
        return key in self._holds and self._fills(key)

    def first_of(self, tensor: Tensor) -> int:
        """Address of the first element of the parameter that the tensor is a view of."""
        return self.first[self._holds[self.key(tensor)][0]]

    def _fills(self, key: Key) -> bool:
        parameter = self.parameters[self._holds[key][0]]
        return parameter.is_contiguous() and parameter.numel() == self._shadows[key].length

    def whole(self, tensor: Tensor) -> int | None:
        """The parameter that the tensor is, all of it and in its shape."""
        for number in self._holds.get(self.key(tensor), []):
            parameter = self.parameters[number]
            same = tensor.storage_offset() == parameter.storage_offset() and tensor.stride() == parameter.stride()
            if same and tensor.shape == parameter.shape:
                return number
        return None

    def place(self, tensor: Tensor) -> tuple[int, int, int] | None:
        """The parameter of which the tensor is a view, or a copy of one: its number, the first element, and how many."""
        for key, _ in self.identity(tensor):
            for number in self._holds.get(key, []):
                parameter = self.parameters[number]
                first = int(tensor.storage_offset()) - int(parameter.storage_offset())
                if key != self.key(tensor) and tensor.numel() < parameter.numel():
                    addresses = self.addresses(tensor)
                    first = -1 if addresses is None else int(addresses.min()) - self.first[number]
                elif key != self.key(tensor):
                    first = 0
                if 0 <= first <= first + tensor.numel() <= parameter.numel():
                    return number, first, tensor.numel()
        return None

    # -- arrays -------------------------------------------------------------------------------------------------

    def families(self, tensor: Tensor) -> list[int]:
        shadow = self._shadows.get(self.key(tensor))
        return [] if shadow is None else [family for family in shadow.arrays if family >= 0]

    def knows(self, tensor: Tensor) -> bool:
        """Whether anything is known of the numbers: labels, addresses or sources."""
        key = self.key(tensor)
        return key in self._holds or (key in self._shadows and bool(self._shadows[key].arrays))

    def sources(self, tensor: Tensor) -> list[int]:
        """Parameters of whose elements some number in the storage is a function; not those of which it is a copy."""
        shadow = self._shadows.get(self.key(tensor))
        return [] if shadow is None else [source(key) for key in shadow.arrays if key < ADDRESSES]

    def has(self, tensor: Tensor, family: int) -> bool:
        shadow = self._shadows.get(self.key(tensor))
        return shadow is not None and family in shadow.arrays

    def labels(self, tensor: Tensor, family: int) -> Tensor:
        """Labels of one family (or sources), which broadcast to the tensor's shape."""
        return compress(_view(self.shadow(tensor).arrays[family], tensor)).clone()

    def addresses(self, tensor: Tensor) -> Tensor | None:
        """Address of each element, NONE where it is no parameter's; None where none is."""
        key = self.key(tensor)
        if key in self._holds:
            return _view(self._parameter_addresses(key), tensor)
        shadow = self._shadows.get(key)
        if shadow is None or ADDRESSES not in shadow.arrays:
            return None
        return _view(shadow.arrays[ADDRESSES], tensor)

    def has_addresses(self, tensor: Tensor) -> bool:
        key = self.key(tensor)
        return key in self._holds or (key in self._shadows and ADDRESSES in self._shadows[key].arrays)

    def parameters_in(self, tensor: Tensor) -> frozenset[int]:
        """Parameters of which some element lies in the tensor."""
        key = self.key(tensor)
        if key in self._holds:
            return frozenset(self._holds[key])
        addresses = self.addresses(tensor)
        if addresses is None:
            return frozenset()
        found = torch.bucketize(addresses[addresses != NONE], self.bounds, right=True) - 1
        return frozenset(ints(values(found)))

    def _parameter_addresses(self, key: Key) -> Tensor:
        """Not kept: for a large model they are as many bytes as two copies of it."""
        if self._fills(key):
            first = self.first[self._holds[key][0]]
            return torch.arange(first, first + self._shadows[key].length)
        flat = torch.full((self._shadows[key].length,), NONE)
        for number in self._holds[key]:
            parameter, first = self.parameters[number], self.first[number]
            _view(flat, parameter).copy_(torch.arange(first, first + parameter.numel()).view(parameter.shape))
        return flat

    def write(self, tensor: Tensor, arrays: Arrays) -> None:
        """Replace all that is known of a tensor's elements; arrays broadcast to its shape."""
        known = self.shadow(tensor).arrays
        for family in known.keys() - arrays.keys():
            _view(known[family], tensor).fill_(NONE)
        for family, array in arrays.items():
            self.add(tensor, family, array)

    def add(self, tensor: Tensor, key: int, array: Tensor) -> None:
        """Replace what one array says of a tensor's elements."""
        known = self.shadow(tensor).arrays
        if key not in known:
            if bool((array == NONE).all()):
                return
            known[key] = torch.full((self.shadow(tensor).length,), NONE)
        _view(known[key], tensor).copy_(array.expand(tensor.shape))


def _view(flat: Tensor, tensor: Tensor) -> Tensor:
    """The elements of `flat` that shadow those of `tensor`."""
    return flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
