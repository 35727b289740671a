"""Matrix products on a CPU, from tiles that stay in its vector registers; to be called from compiled functions.

A tile is 8 rows by 3 vectors of the result, whose sums are all in registers while k runs. Vectors are the widest that
the CPU has. (The library that torch multiplies with takes half of them on CPUs that aren't its maker's own.)

Matrices are given by the address of their first element and by strides in floats, so that parts of rows, columns and
transposes need no copies. Nothing checks them: an address must be inside an array that outlives the call.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils, config

from deepinterest.kernels.compiled import compiled_once


def _features() -> str:
    """The CPU's, or those that numba's environment variables name."""
    return getattr(config, "CPU_FEATURES", None) or str(llvmlite.binding.get_host_cpu_features().flatten())


VECTOR = 16 if "+avx512f" in _features() else 8  # floats
ROWS = 8 if VECTOR == 16 else 4  # of a tile: as many as there are registers for

intrinsic: Any = extending.intrinsic
FLOAT = 4  # bytes
LINE = 64  # bytes that come together from memory

_INT, _INDEX, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_MANY = ir.VectorType(_FLOAT, VECTOR)


class _Emitter:
    """LLVM's instructions for vectors at addresses (bytes) plus offsets (floats). A mask tells which floats count."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def first(self, count: Any) -> Any:
        """The mask of the first `count` floats; count may be less than 0 and more than a vector's."""
        lanes = ir.VectorType(_INT, VECTOR)
        counts = self.spread(self.builder.trunc(count, _INT), lanes)
        return self.builder.icmp_signed("<", ir.Constant(lanes, list(range(VECTOR))), counts)

    def spread(self, value: Any, kind: Any) -> Any:
        """A vector of one value."""
        nothing = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(nothing, value, _INT(0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT, VECTOR), [0] * VECTOR))

    def place(self, address: Any, offset: Any, kind: Any) -> Any:
        in_bytes = self.builder.mul(offset, _INDEX(FLOAT))
        return self.builder.inttoptr(self.builder.add(address, in_bytes), kind.as_pointer())

    def load(self, address: Any, offset: Any, mask: Any = None) -> Any:
        """Zero where the mask is off."""
        place = self.place(address, offset, _MANY)
        if mask is None:
            return self.builder.load(place, align=FLOAT)
        return self._call("llvm.masked.load", ".p0", _MANY, [place, _INT(FLOAT), mask, ir.Constant(_MANY, None)])

    def store(self, value: Any, address: Any, offset: Any, mask: Any = None) -> None:
        place = self.place(address, offset, _MANY)
        if mask is None:
            self.builder.store(value, place, align=FLOAT)
        else:
            self._call("llvm.masked.store", ".p0", ir.VoidType(), [value, place, _INT(FLOAT), mask])

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self._call("llvm.fmuladd", "", _MANY, [a, b, c])

    def _call(self, name: str, suffix: str, result: Any, arguments: list[Any]) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"{name}.v{VECTOR}f32{suffix}")
        return self.builder.call(function, arguments)


def _tile(rows: int, vectors: int) -> Any:
    """The product of a tile of this size; see `product` for the arguments."""

    @intrinsic
    def tile(context, a, a_row, a_step, b, b_step, c, c_row, steps, columns, add):
        def emit(context, builder, signature, arguments):
            a, a_row, a_step, b, b_step, c, c_row, steps, columns, add = arguments
            code = _Emitter(builder)
            rest = code.first(builder.sub(columns, _INDEX((vectors - 1) * VECTOR)))
            masks = [None] * (vectors - 1) + [rest]
            cells = [(i, v) for i in range(rows) for v in range(vectors)]
            sums = {cell: cgutils.alloca_once(builder, _MANY) for cell in cells}  # registers, once optimised

            def in_c(i: int, v: int) -> Any:
                return builder.add(builder.mul(c_row, _INDEX(i)), _INDEX(v * VECTOR))

            with builder.if_else(builder.icmp_signed("!=", add, _INDEX(0))) as (onto, fresh):
                with onto:
                    for i, v in cells:
                        builder.store(code.load(c, in_c(i, v), masks[v]), sums[i, v])
                with fresh:
                    for cell in cells:
                        builder.store(ir.Constant(_MANY, None), sums[cell])
            with cgutils.for_range(builder, steps) as loop:
                begin = builder.mul(loop.index, b_step)
                row = [code.load(b, builder.add(begin, _INDEX(v * VECTOR)), masks[v]) for v in range(vectors)]
                for i in range(rows):
                    offset = builder.add(builder.mul(a_row, _INDEX(i)), builder.mul(loop.index, a_step))
                    factor = code.spread(builder.load(code.place(a, offset, _FLOAT)), _MANY)
                    for v in range(vectors):
                        total = code.multiply_add(factor, row[v], builder.load(sums[i, v]))
                        builder.store(total, sums[i, v])
            for i, v in cells:
                code.store(builder.load(sums[i, v]), c, in_c(i, v), masks[v])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10), emit

    return tile


@intrinsic
def _copy_vector(context, source, to, read, written):
    def emit(context, builder, signature, arguments):
        source, to, read, written = arguments
        code = _Emitter(builder)
        code.store(code.load(source, _INDEX(0), code.first(read)), to, _INDEX(0), code.first(written))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), emit


def _onto(compute: Any) -> Any:
    """to = compute(code, to, left, right) of vectors, for the first `count` floats."""

    @intrinsic
    def vector(context, left, right, to, count):
        def emit(context, builder, signature, arguments):
            left, right, to, count = arguments
            code = _Emitter(builder)
            mask = code.first(count)
            total = compute(code, *(code.load(place, _INDEX(0), mask) for place in (to, left, right)))
            code.store(total, to, _INDEX(0), mask)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), emit

    return vector


_add_vector = _onto(lambda code, to, left, right: code.builder.fadd(to, left))
_multiply_vector = _onto(lambda code, to, left, right: code.builder.fmul(to, left))
_add_product_vector = _onto(lambda code, to, left, right: code.multiply_add(left, right, to))


@intrinsic
def _prefetch_line(context, address):
    def emit(context, builder, signature, arguments):
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(arguments[0], pointer), _INT(0), _INT(3), _INT(1)])
        return context.get_dummy_value()

    return types.void(types.intp), emit


@compiled_once
def prefetch(address, size):
    """Have so many floats come to the nearest cache meanwhile; an address that nobody has does no harm."""
    for done in range(0, FLOAT * size, LINE):
        _prefetch_line(address + done)


@compiled_once
def copy(source, to, read, written):
    """to[:written] = source[:read], filled up with zeros; both are addresses."""
    for done in range(0, written, VECTOR):
        _copy_vector(source + FLOAT * done, to + FLOAT * done, read - done, written - done)


@compiled_once
def add(source, to, size):
    """to[:size] += source[:size]; both are addresses."""
    for done in range(0, size, VECTOR):
        _add_vector(source + FLOAT * done, source, to + FLOAT * done, size - done)


@compiled_once
def multiply(source, to, size):
    """to[:size] *= source[:size]; both are addresses."""
    for done in range(0, size, VECTOR):
        _multiply_vector(source + FLOAT * done, source, to + FLOAT * done, size - done)


@compiled_once
def add_product(left, right, to, size):
    """to[:size] += left[:size] * right[:size]; all are addresses."""
    for done in range(0, size, VECTOR):
        _add_product_vector(left + FLOAT * done, right + FLOAT * done, to + FLOAT * done, size - done)


_8x3, _8x2, _8x1 = _tile(8, 3), _tile(8, 2), _tile(8, 1)
_4x3, _4x2, _4x1 = _tile(4, 3), _tile(4, 2), _tile(4, 1)
_1x3, _1x2, _1x1 = _tile(1, 3), _tile(1, 2), _tile(1, 1)


@compiled_once
def product(a, a_row, a_step, b, b_step, c, c_row, rows, steps, columns, add):
    """c (rows, columns) = a (rows, steps) @ b (steps, columns), or c += that where add is 1.

    a[i, k] is at a + i*a_row + k*a_step, b[k, j] at b + k*b_step + j, c[i, j] at c + i*c_row + j: addresses in bytes,
    strides in floats.
    """
    vectors = (columns + VECTOR - 1) // VECTOR
    parts = (vectors + 2) // 3  # of at most three vectors, as equal as can be
    done = 0
    for part in range(parts):
        now = (vectors - done + parts - part - 1) // (parts - part)
        width = min(columns - done * VECTOR, now * VECTOR)
        at_b, at_c = b + FLOAT * done * VECTOR, c + FLOAT * done * VECTOR
        i = 0
        while i < rows:
            at_a, to = a + FLOAT * i * a_row, at_c + FLOAT * i * c_row
            if ROWS == 8 and i + 8 <= rows:
                if now == 3:
                    _8x3(at_a, a_row, a_step, at_b, b_step, to, c_row, steps, width, add)
                elif now == 2:
                    _8x2(at_a, a_row, a_step, at_b, b_step, to, c_row, steps, width, add)
                else:
                    _8x1(at_a, a_row, a_step, at_b, b_step, to, c_row, steps, width, add)
                i += 8
            elif i + 4 <= rows:
                if now == 3:
                    _4x3(at_a, a_row, a_step, at_b, b_step, to, c_row, steps, width, add)
                elif now == 2:
                    _4x2(at_a, a_row, a_step, at_b, b_step, to, c_row, steps, width, add)
                else:
                    _4x1(at_a, a_row, a_step, at_b, b_step, to, c_row, steps, width, add)
                i += 4
            else:
                if now == 3:
                    _1x3(at_a, a_row, a_step, at_b, b_step, to, c_row, steps, width, add)
                elif now == 2:
                    _1x2(at_a, a_row, a_step, at_b, b_step, to, c_row, steps, width, add)
                else:
                    _1x1(at_a, a_row, a_step, at_b, b_step, to, c_row, steps, width, add)
                i += 1
        done += now
