# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalCall=false
"""A named tuple that compiled functions pass to one another by its address.

To Numba a named tuple is a value: it is passed as all the numbers in it, some 600 for the four that describe a learner, and each
read of a field spells out all of them for LLVM to take apart again. That made up most of the time that a kernel took to compile.

    net = by_reference(net)     from here on `net.sizes` reads one field from memory, and a call passes one address

The tuple lies in the frame of the function that calls `by_reference`, and has to be used within it alone.
"""

from __future__ import annotations

from hashlib import blake2b

from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.datamodel.registry import register_default
from numba.core.errors import TypingError
from numba.core.imputils import impl_ret_borrowed
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, lower_getattr_generic


class Reference(types.Type):
    """Address of a named tuple. Its short name becomes part of the name of every function that takes it."""

    def __init__(self, fields: types.BaseNamedTuple) -> None:
        self.fields = fields
        digest = blake2b(str(fields).encode(), digest_size=8).hexdigest()
        super().__init__(name=f"Reference({fields.instance_class.__name__}, {digest})")


@register_default(Reference)
class ReferenceModel(models.PrimitiveModel):
    def __init__(self, manager, reference):
        super().__init__(manager, reference, manager.lookup(reference.fields).get_value_type().as_pointer())


@intrinsic
def by_reference(typing, fields):
    def codegen(context, builder, signature, args):
        where = cgutils.alloca_once(builder, args[0].type)
        for i in range(len(fields)):
            builder.store(builder.extract_value(args[0], i), cgutils.gep_inbounds(builder, where, 0, i))
        return where

    return Reference(fields)(fields), codegen


@intrinsic
def call(typing, address, references, numbers):
    """Call a function of `references` and then `numbers`, all integers, that returns nothing: see `pliant.online.on_demand`."""
    kinds = [*references.types, *numbers.types]
    if not all(isinstance(each, Reference) or each == types.int64 for each in kinds):
        raise TypingError(f"only references and integers can be passed to an address, not {kinds}")

    def codegen(context, builder, signature, args):
        kind = context.call_conv.get_function_type(types.none, kinds)
        function = builder.inttoptr(args[0], kind.as_pointer())
        given = [*cgutils.unpack_tuple(builder, args[1]), *cgutils.unpack_tuple(builder, args[2])]
        status, _ = context.call_conv.call_function(builder, function, types.none, kinds, given)
        with cgutils.if_unlikely(builder, status.is_error):
            context.call_conv.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.none(types.int64, references, numbers), codegen


@infer_getattr
class ReferenceAttribute(AttributeTemplate):
    key = Reference

    def generic_resolve(self, reference, name):
        fields = reference.fields
        return fields.types[fields.fields.index(name)] if name in fields.fields else None


@lower_getattr_generic(Reference)
def read_field(context, builder, reference, where, name):
    i = reference.fields.fields.index(name)
    field = builder.load(cgutils.gep_inbounds(builder, where, 0, i))
    return impl_ret_borrowed(context, builder, reference.fields.types[i], field)
