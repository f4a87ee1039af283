"""Arrays by their address, so that one compiled call can process many worlds. The caller must keep the arrays alive."""

from __future__ import annotations

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from wmgym.jit import njit


@intrinsic
def _pointer(typing_context, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@njit(inline="always")
def cells_at(address, shape):
    """The C-contiguous uint8 array of this shape at `address` (its `ctypes.data`)."""
    return carray(_pointer(address), shape, np.uint8)  # type: ignore[call-arg]  # numba adds the context
