# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false
"""How the kernels are compiled.

    cached     what Python calls, kept on disk with everything that it calls
    compiled   what only compiled functions call; `apart`, `inlined` and `reordered` are kinds of it
    on_demand  what most learners do not need, compiled when learners first need it

**Once.** Numba makes each function a library of its own: it links in those of the functions that it calls, optimizes all of
that, and emits machine code. A function at the fourth level of a kernel would be optimized and emitted four times, for
callers that do not exist. A compiled function is linked into the one that calls it as it is, and becomes machine code once,
in the kernel. Named tuples are passed by their address (`pliant.online.reference`).

**On demand.** A kernel calls such a function by its address, which is 0 as long as it is not needed:

    @on_demand
    def normalize_layer(net, rules, state, work, r, layer, step): ...         named tuples by reference, three integers, no result

    call(work.parts[NORMALIZE], (net, rules, state, work), (r, layer, step))  in the kernel

**On disk.** Numba checks for edits in the file of a cached function alone, and its index on disk cannot be read once a class
that it names is gone (it raises, at every import). So the name of a cached function contains the `edition` of this package:
after an edit, or with another version installed over this one, nothing is found in the cache and the function is compiled anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numba import _dynfunc, njit, typeof, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.typed_passes import NativeLowering
from numpy.typing import NDArray

from pliant.online.reference import Reference

log = logging.getLogger("pliant")


@cache
def edition() -> str:
    """Sixteen hexadecimal digits for the sources of this package as they are."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return blake2b(b"".join(file.read_bytes() for file in files), digest_size=8).hexdigest()


class PartLibrary(JITCodeLibrary):
    """A function and all that it calls, to be linked into another library."""

    def finalize(self):
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class PartLowering(NativeLowering):
    """`NativeLowering` into a `PartLibrary`, without the code that Python or C would call."""

    _name = "part_lowering"

    def run_pass(self, state):
        state.library = PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags = state.flags.copy()
        state.flags.no_compile = state.flags.no_cpython_wrapper = state.flags.no_cfunc_wrapper = True
        super().run_pass(state)
        lowered = state["cr"]
        where, name = lowered.fndesc.lookup_module(), state.func_id.func_name
        entry = _dynfunc.make_function(
            where, name, "a part", 0, lowered.env, (state.library,)
        )  # address 0: never called
        state.targetctx.insert_user_function(entry, lowered.fndesc, [state.library])
        state["cr"] = lowered._replace(cfunc=entry)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class ApartLowering(PartLowering):
    """The same for a function that LLVM is not to inline."""

    _name = "apart_lowering"

    def run_pass(self, state):
        super().run_pass(state)
        name = state["cr"].fndesc.llvm_func_name
        state.library._final_module.get_function(name).add_function_attribute("noinline")
        return True


class PartCompiler(CompilerBase):
    """Numba's compiler, for a part."""

    lowering = PartLowering

    def define_pipelines(self):
        pipeline = PassManager("part")
        for each, why in DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            pipeline.add_pass(self.lowering if each is NativeLowering else each, why)
        pipeline.finalize()
        return [pipeline]


class ApartCompiler(PartCompiler):
    """The same for a part that is not to be inlined."""

    lowering = ApartLowering


@cache
def say_once() -> None:
    """A line on the terminal, where no logging is set up: the first call of a learner would take its seconds in silence."""
    log.warning("compiling the online learners for this machine: some seconds, once; the code is kept on disk")


class KernelCompiler(CompilerBase):
    """Numba's compiler, which is not asked where the code is on disk."""

    def define_pipelines(self):
        say_once()
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


# `_nrt=False`: these functions allocate nothing, so Numba need not count references to the arrays they are given, which
# would take longer than a step of a small network does.
COMMON: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}

compiled = njit(pipeline_class=PartCompiler, **COMMON)
# For long loops over weights: in the midst of other code LLVM would have fewer registers for them.
apart = njit(pipeline_class=ApartCompiler, **COMMON)
# For the few lines that make a view: without counting references Numba lets a function return an argument alone.
inlined = njit(inline="always")
# Sums may be taken in any order and products fused, nothing more: infinities and NaN keep their meaning. Each is compiled by
# itself, so that the order, which LLVM chooses, is the same whatever function calls it.
reordered = njit(fastmath={"reassoc", "contract", "nsz"}, no_cpython_wrapper=True, no_cfunc_wrapper=True, **COMMON)


def cached(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a function that Python calls, and keep the code on disk, filed under the package's `edition`."""
    function.__qualname__ += f"_{edition()}"
    return njit(cache=True, no_cfunc_wrapper=True, pipeline_class=KernelCompiler, **COMMON, **options)(function)


def on_demand(function: Callable[..., None]) -> Any:
    """Compile a function that kernels call by its address, and keep the code on disk."""
    return cached(function, no_cpython_wrapper=True)


_KNOWN: dict[tuple[Any, np.dtype[Any]], int] = {}  # addresses: the floating type decides the types of all fields


def addresses(parts: Mapping[int, Any], count: int, dtype: np.dtype[Any], *tuples: Any) -> NDArray[np.int64]:
    """The addresses of `parts`, by their number below `count`, for these named tuples of numbers of `dtype`; 0 for no part."""
    found = np.zeros(count, np.int64)
    for number, part in parts.items():
        if (part, dtype) not in _KNOWN:
            kinds = (*(Reference(typeof(each)) for each in tuples), types.int64, types.int64, types.int64)
            part.compile(kinds)
            compiled = part.overloads[kinds]
            _KNOWN[part, dtype] = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
        found[number] = _KNOWN[part, dtype]
    return found
