"""Safe reading of pickles from other people's datasets.

A pickle is a program. This reader supports plain containers, text, numbers, and NumPy arrays of numbers, which it builds from their bytes.
Any other name in a file is refused before it is looked up.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

_KINDS = "biuf"  # kinds of dtypes: booleans, integers, floats


def load_plain(path: Path | str) -> Any:
    """The content of a pickle of plain containers, text, numbers and arrays of numbers. ValueError if it has anything else."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _plain(_Unpickler(file).load())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except RecursionError:
        raise ValueError(f"{path} is not a pickle of plain data: it is nested too deeply, or contains itself") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, MemoryError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a pickle of plain data: {' '.join(str(error).split()) or type(error).__name__}") from error


class _Dtype:
    """Replacement of numpy.dtype: kind and size, then the byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in _KINDS:
            raise pickle.UnpicklingError(f"arrays of {code!r} are not numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Replacement of numpy.ndarray while the file is read."""

    def __init__(self, *_: Any) -> None:  # the arguments describe an empty array; the data follow in the state
        self.value = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, raw = state
        self.value = _from_bytes(raw, dtype, shape, "F" if by_columns else "C")


def _from_bytes(raw: Any, dtype: _Dtype, shape: Any, order: str, axes: Any = None) -> np.ndarray:
    if not isinstance(raw, (bytes, bytearray)) or not isinstance(dtype, _Dtype) or axes is not None:
        raise pickle.UnpicklingError("an array whose data are not bytes")
    return np.frombuffer(raw, dtype.dtype).reshape(tuple(shape), order="F" if order == "F" else "C").astype(dtype.dtype.newbyteorder("="))


def _buffered(raw: Any, dtype: _Dtype, shape: Any, order: str, axes: Any = None) -> _Array:
    array = _Array()
    array.value = _from_bytes(raw, dtype, shape, order, axes)
    return array


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    return _from_bytes(raw, dtype, (1,), "C")[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes in old pickle protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Empty bytes in old pickle protocols."""
    return b""


_KNOWN = {
    ("builtins", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _buffered,
    ("_codecs", "encode"): _latin1,
}


class _Function:
    """A wrapper of the functions above that can only be called, since a pickle can also set attributes."""

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets attributes of a function")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins"), name))
        if known is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known if isinstance(known, type) else _Function(known)


def _plain(value: Any) -> Any:
    """The same containers with NumPy arrays."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(_plain(item) for item in value)
    if value is None or isinstance(value, (bool, int, float, str, bytes, bytearray)):
        return value
    raise pickle.UnpicklingError(f"it contains a {type(value).__name__}")
