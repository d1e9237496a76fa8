# pyright: basic, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""How functions are compiled that only compiled functions call.

Numba makes each function a library of its own: it links in those of the functions that it calls, optimizes all of that, and
emits machine code. A function at the fourth level of a kernel is thus optimized and emitted four times, for callers that do not
exist. A part is linked into the function that calls it as it is, and becomes machine code once, in the kernel. Python cannot
call it.
"""

from __future__ import annotations

from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.typed_passes import NativeLowering


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


class PartCompiler(CompilerBase):
    """Numba's compiler, for a part."""

    def define_pipelines(self):
        pipeline = PassManager("part")
        for each, why in DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            pipeline.add_pass(PartLowering if each is NativeLowering else each, why)
        pipeline.finalize()
        return [pipeline]
