"""The names of torchvision that timm's modules mention when they are imported, and nothing behind them.

timm needs torchvision to read pictures, which the zoo never does, and torchvision's wheel would bring another torch. While timm
is imported, every submodule of torchvision exists and every name in it is an empty class; nothing of it stays importable.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Name(type):
    """A class whose attributes are their own names, as members of an enumeration need."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Module(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        found = _Name(name, (), {})
        setattr(self, name, found)
        return found


class _Finder:
    """Creates `torchvision` and whatever lies under it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__version__ = "0.0"


@contextmanager
def torchvision_names() -> Iterator[None]:
    """Inside, `import torchvision.anything` works."""
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
