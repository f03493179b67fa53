"""Reads the tables at the start of a GGUF file: metadata, and where each tensor's numbers are.

The file may be a stranger's, so its lengths are checked here against what is left of the file (the
`gguf` library believes them).
"""

import math
import struct
from typing import Any

import gguf
import numpy as np

from jaxmoral.models.foreign import bare, shown

_MAX_ENTRIES = 2**16  # of the table of metadata and of the table of tensors
_MAX_TEXTS = 2**21  # of all lists of texts together: they cost time, and memory if they are kept
_MAX_DIMENSIONS = 4
# How GGUF numbers the types of metadata, and what struct and numpy call them.
_U32, _STRING, _ARRAY, _U64 = 4, 8, 9, 10
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", _U32: "<I", 5: "<i", 6: "<f", 7: "<?"}
_NUMBERS |= {_U64: "<Q", 11: "<q", 12: "<d"}
TOKENS, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
KEPT = (TOKENS, MERGES)  # the only lists of texts that are


class Head:
    """The tables at the start of a GGUF file. Raises ValueError or KeyError if they are damaged.

    Attributes:
      fields: the metadata; of lists of texts other than `KEPT` the length alone.
      tensors: by name, the storage type, the shape (outermost first), and the stored bytes
        `[..., bytes of a row]`.
    """

    def __init__(self, data: np.ndarray):
        self._bytes, self._at, self._texts = data.data, 0, 0
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number(_U32)
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; 2 and 3 are known")
        num_tensors, num_fields = self._number(_U64), self._number(_U64)
        if max(num_tensors, num_fields) > _MAX_ENTRIES:
            raise ValueError(f"a table has more than {_MAX_ENTRIES:,} entries")
        self.fields: dict[str, Any] = {}
        for _ in range(num_fields):
            name = self._text()
            if name in self.fields:
                raise ValueError(f"{bare(name)} stands in it twice")
            self.fields[name] = self._value(name in KEPT)
        described = [self._tensor() for _ in range(num_tensors)]
        alignment = self.fields.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in [2**n for n in range(16)]:
            raise ValueError(f"its alignment is {shown(alignment)}")
        self._at += -self._at % alignment
        # In the order of their bytes: no two may share some, or a small file could hold large
        # models.
        start, end = self._at, self._at
        self.tensors: dict[str, tuple[gguf.GGMLQuantizationType, tuple, np.ndarray]] = {}
        for name, kind, shape, offset in sorted(described, key=lambda tensor: tensor[3]):
            rows = gguf.quants.quant_shape_to_byte_shape(shape, kind)
            first, last = start + offset, start + offset + math.prod(rows)
            if name in self.tensors or first < end or last > len(data):
                raise ValueError(f"the numbers of {bare(name)} are cut off or not its own")
            self.tensors[name] = kind, shape, data[first:last].reshape(rows)
            end = last

    def _take(self, size: int) -> bytes:
        if size > len(self._bytes) - self._at:
            raise ValueError("it ends early")
        self._at += size
        return bytes(self._bytes[self._at - size : self._at])

    def _number(self, kind: int) -> Any:
        name = _NUMBERS[kind]
        return struct.unpack(name, self._take(struct.calcsize(name)))[0]

    def _text(self) -> str:
        return str(self._take(self._number(_U64)), "utf-8")

    def _value(self, keep_texts: bool) -> Any:
        kind = self._number(_U32)
        if kind == _STRING:
            return self._text()
        return self._array(keep_texts) if kind == _ARRAY else self._number(kind)

    def _array(self, keep_texts: bool) -> Any:
        kind, count = self._number(_U32), self._number(_U64)
        if kind != _STRING:
            dtype = np.dtype(_NUMBERS[kind])
            return np.frombuffer(self._take(count * dtype.itemsize), dtype)
        self._texts += count
        if self._texts > _MAX_TEXTS:
            raise ValueError(f"it holds more than {_MAX_TEXTS:,} texts")
        if keep_texts:
            return [self._text() for _ in range(count)]
        for _ in range(count):
            self._take(self._number(_U64))
        return count

    def _tensor(self) -> tuple[str, gguf.GGMLQuantizationType, tuple[int, ...], int]:
        name, dimensions = self._text(), self._number(_U32)
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"{bare(name)} has {dimensions} dimensions")
        shape = [self._number(_U64) for _ in range(dimensions)]
        kind = gguf.GGMLQuantizationType(self._number(_U32))
        return name, kind, tuple(reversed(shape)), self._number(_U64)
