"""Arrays by their address, so that one compiled call can work on many worlds. Who passes an address keeps its array alive."""

from __future__ import annotations

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def _pointer(typing_context, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@njit(inline="always")
def cells_at(address, shape):
    """The uint8 array of this shape, rows first, that begins at `address` (the array's `ctypes.data`)."""
    return carray(_pointer(address), shape, np.uint8)  # type: ignore[call-arg]  # numba adds the context
