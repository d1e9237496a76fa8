"""A method of a user's own, which joins an experiment from outside: a class in a file, and the SHA-256 of that file.

    name        what it is called on the command line and in rows
    color       that it has in every figure, such as "#117733"
    words       what figures call it; its name, if there are none
    Fields      its own settings, a pydantic model: `--set` reaches them, rows have them as columns
    make        (model, optimizer, config, seed) -> what hangs on the optimizer by then, with state_dict and load_state_dict;
                or None, where nothing is left to remember

A class with these names and no base class. The hash is part of the study and of the identity of each job that learns by the
method: a file that has changed since is refused before it learns on.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from pliant.lab.errors import LabError, unknown
from pliant.lab.study.modules import classes_of, module_of_file, search_in

REQUIRED = ("name", "color", "Fields", "make")
RESERVED = ("run", "status", "diverged_at", "commit")  # columns that the laboratory adds to every table of rows
_NAME, _COLOR = re.compile(r"[a-z0-9][a-z0-9-]*"), re.compile(r"#[0-9a-fA-F]{6}")


class MethodTarget(BaseModel, frozen=True):
    """Where a method of a user's own is found again, and what its file was."""

    name: str
    address: str = Field(pattern=r"^[^\x00]*\.py:\w+$")  # an absolute file.py:Class
    sha256: str  # of the file

    @property
    def file(self) -> Path:
        return Path(self.address.rpartition(":")[0])

    @property
    def shown(self) -> str:
        """The address without the folders of this machine."""
        return f"{self.file.name}:{self.address.rpartition(':')[2]}"


@dataclass(frozen=True)
class OwnMethod:
    """What an experiment gets of it."""

    name: str
    words: str
    color: str
    fields: type[BaseModel]
    make: Callable[[Any, Any, Any, int], Any]


def method_target(address: str) -> MethodTarget:
    """`my_file.py:MyMethod`, as typed in the current folder. Raises LabError where it names no method."""
    place, _, name = address.rpartition(":")
    if not place.endswith(".py") or not name.isidentifier():
        raise LabError(f"--method '{address}': write path/to/file.py:Class")
    file = Path(place).resolve()
    found = _loaded(file, name)
    return MethodTarget(name=found.name, address=f"{file}:{name}", sha256=sha256_of(file))


def load_method(where: MethodTarget) -> OwnMethod:
    """The method as its file has it now. Raises LabError where there is none, or where it lacks something."""
    return _loaded(where.file, where.address.rpartition(":")[2])


def sha256_of(file: Path) -> str:
    """Raises LabError where the file is not there."""
    if not file.is_file():
        raise LabError(f"no method at {file}: put the file back, or give --method again with where it is now")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def refuse_changed(where: MethodTarget, now: str, what_else: str) -> None:
    """Raise LabError where the file of a method is not what it was; `what_else` can be done than putting it back."""
    if where.sha256 != now:
        raise LabError(
            f"{where.shown}, the method '{where.name}' of this study, has changed since (SHA-256 {where.sha256[:12]}..., now "
            f"{now[:12]}...): put the file back as it was, or {what_else}"
        )


def _loaded(file: Path, name: str) -> OwnMethod:
    search_in(str(file.parent))
    module = module_of_file(file, "method")
    if not hasattr(module, name):
        raise unknown(f"class in {file}", name, classes_of(module))
    kind: Any = getattr(module, name)
    address = f"{file.name}:{name}"
    missing = [word for word in REQUIRED if not hasattr(kind, word)]
    if missing:
        raise LabError(f"{address} is no method: it lacks {', '.join(missing)} (docs/your-own-method.md)")
    if not (isinstance(kind.name, str) and _NAME.fullmatch(kind.name)):
        raise LabError(
            f"{address}: name is {kind.name!r}: lower-case letters, digits and hyphens, such as 'weight-noise'"
        )
    if not (isinstance(kind.color, str) and _COLOR.fullmatch(kind.color)):
        raise LabError(f"{address}: color is {kind.color!r}: write it as '#117733'")
    if not (inspect.isclass(kind.Fields) and issubclass(kind.Fields, BaseModel)):
        raise LabError(
            f"{address}: Fields is no pydantic model: class Fields(pydantic.BaseModel), with a field per setting"
        )
    reserved = [field for field in kind.Fields.model_fields if field in RESERVED]
    if reserved:
        raise LabError(f"{address}: the field {reserved[0]} is a column of the laboratory's: give it another name")
    return OwnMethod(kind.name, getattr(kind, "words", kind.name), kind.color, kind.Fields, kind().make)
