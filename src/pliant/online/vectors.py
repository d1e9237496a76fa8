# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalCall=false
"""A vector of LANES numbers as a value that compiled code can hold in a register.

Numba has no such type, and a loop over 16 lanes is too short for LLVM to vectorize it well: it has to
prove, each time, that the memory written does not overlap the memory read. With `load` and `store`
vectors are explicit, and arithmetic stays in registers in between. LLVM maps a vector to the
registers of the machine: one of 512 bits, two of 256, four of 128.

    v = load(a, p)       row p of a C-contiguous array (..., LANES)
    store(a, p, v)       the same, written; rounded, if the array is of a narrower type
    spread(x)            one number in every lane
    u + v  u - v  u * v  u / v
    fused(u, v, w)       u v + w, rounded once. Written out, so that two loops that should agree to the
                         bit do not depend on what a compiler chose to fuse.
    root(v)  size(v)     square root, absolute value
    larger(u, v)
    added(v)             sum over lanes, in any order
    unless_zero(x, u, v) u where x is not zero, else v
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.datamodel.registry import register_default
from numba.core.errors import TypingError
from numba.core.imputils import impl_ret_borrowed
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin
from numba.np.arrayobj import populate_array

LANES = 16  # one 512-bit vector of float32


class Vector(types.Type):
    """LANES numbers of one floating type."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype}, {LANES})")


@register_default(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, ir.VectorType(manager.lookup(vector.dtype).get_value_type(), LANES))


def _contiguous(array):
    """`array`, a type, if rows of it can be found by counting; else a compile-time error."""
    if array.layout != "C":
        raise TypingError(f"{array} is not C-contiguous; copy it first")
    return array


def _row(context, builder, array_type, array, row):
    """Pointer to a row, as a vector, and the alignment that every element has."""
    data = context.make_array(array_type)(context, builder, array).data
    first = builder.gep(data, [builder.mul(row, ir.Constant(row.type, LANES))])
    return builder.bitcast(first, ir.VectorType(data.type.pointee, LANES).as_pointer())


@intrinsic
def load(typing, array, row):
    def codegen(context, builder, signature, args):
        pointer = _row(context, builder, signature.args[0], *args)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return Vector(_contiguous(array).dtype)(array, types.intp), codegen


@intrinsic
def store(typing, array, row, vector):
    def codegen(context, builder, signature, args):
        pointer = _row(context, builder, signature.args[0], *args[:2])
        value = args[2]
        if array.dtype.bitwidth < vector.dtype.bitwidth:
            value = builder.fptrunc(value, pointer.type.pointee)
        builder.store(value, pointer, align=array.dtype.bitwidth // 8)

    return types.void(_contiguous(array), types.intp, vector), codegen


@intrinsic
def spread(typing, number):
    def codegen(context, builder, signature, args):
        vector = ir.VectorType(args[0].type, LANES)
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), args[0], cgutils.int32_t(0))
        zeros = ir.Constant(ir.VectorType(cgutils.int32_t, LANES), [0] * LANES)
        return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)

    return Vector(number)(number), codegen


def _llvm(name, count):
    """A function of `count` vectors that LLVM knows by name."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(args[0].type, [args[0].type] * count)
        bits = signature.return_type.dtype.bitwidth
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f{bits}"), args)

    return lambda vector: (vector(*[vector] * count), codegen)


@intrinsic
def fused(typing, u, v, w):
    return _llvm("fma", 3)(u)


@intrinsic
def root(typing, v):
    return _llvm("sqrt", 1)(v)


@intrinsic
def size(typing, v):
    return _llvm("fabs", 1)(v)


@intrinsic
def larger(typing, u, v):
    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return u(u, v), codegen


@intrinsic
def unless_zero(typing, x, u, v):
    def codegen(context, builder, signature, args):
        zero = builder.fcmp_ordered("==", args[0], ir.Constant(args[0].type, [0.0] * LANES))
        return builder.select(zero, args[2], args[1])

    return u(x, u, v), codegen


def _view(context, builder, signature, array, begin, shape):
    """The memory of an array from number `begin` on, under another shape."""
    source = context.make_array(signature.args[0])(context, builder, array)
    view = context.make_array(signature.return_type)(context, builder)
    strides = [source.itemsize, *(builder.mul(source.itemsize, length) for length in shape[:0:-1])][::-1]
    populate_array(
        view, builder.gep(source.data, [begin]), shape, strides, source.itemsize, source.meminfo, source.parent
    )
    return impl_ret_borrowed(context, builder, signature.return_type, view._getvalue())


@intrinsic
def flat(typing, array):
    def codegen(context, builder, signature, args):
        count = context.make_array(signature.args[0])(context, builder, args[0]).nitems
        return _view(context, builder, signature, args[0], ir.Constant(count.type, 0), [count])

    return _contiguous(array).copy(ndim=1)(array), codegen


@intrinsic
def matrix_view(typing, array, place):
    """`rows` x `columns` numbers of an array of one dimension, from number `begin` on; `place` is (begin, rows, columns)."""

    def codegen(context, builder, signature, args):
        begin, rows, columns = cgutils.unpack_tuple(builder, args[1])
        return _view(context, builder, signature, args[0], begin, [rows, columns])

    return _contiguous(array).copy(ndim=2)(array, types.UniTuple(types.intp, 3)), codegen


@intrinsic
def added(typing, v):
    def codegen(context, builder, signature, args):
        element = args[0].type.element
        kind = ir.FunctionType(element, [element, args[0].type])
        name = f"llvm.vector.reduce.fadd.v{LANES}f{v.dtype.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [ir.Constant(element, -0.0), args[0]], fastmath=("reassoc",))

    return v.dtype(v), codegen


class _OfTwoVectors(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
            return signature(args[0], *args)
        return None


def _define(symbol, instruction):
    infer_global(symbol)(type(f"Vector_{instruction}", (_OfTwoVectors,), {"key": symbol}))
    lower_builtin(symbol, Vector, Vector)(lambda context, builder, sig, args: getattr(builder, instruction)(*args))


for _symbol, _instruction in {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}.items():
    _define(_symbol, _instruction)
