"""May these files become a version? Refuses pickles, code, broken weights and incomplete folders. Shell.

Only the first bytes, or the header, of each file are read: a folder of any size is inspected in milliseconds.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from registry.errors import BrokenWeights, IncompleteSource, UnsafeFile
from registry.files import SourceFile

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})
CODE_SUFFIXES = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib"})
TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tekken.json",
    }
)
MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit on a header."""

CONVERT = (
    "loading it could run any code: convert it with "
    "model.save_pretrained(FOLDER, safe_serialization=True) and leave this file out"
)
_DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


def inspect(files: Sequence[SourceFile]) -> None:
    """Check a folder's files before they become a version of a real model.

    Raises:
        UnsafeFile: a pickle (by name or by content) or code.
        IncompleteSource: no config.json, no safetensors, a missing shard, or no tokenizer.
        BrokenWeights: a safetensors file that is cut off or malformed.
    """
    refuse_unsafe(files)
    _refuse_incomplete(files)
    for file in files:
        if file.path.endswith(".safetensors"):
            check_safetensors(file.real)


def refuse_unsafe(files: Sequence[SourceFile]) -> None:
    """Refuse what could run code when it is loaded."""
    for file in files:
        suffix = PurePosixPath(file.path).suffix.lower()
        if suffix in PICKLE_SUFFIXES:
            raise UnsafeFile(f"{file.path} is a pickle by its name ({suffix}); {CONVERT}")
        if suffix in CODE_SUFFIXES:
            raise UnsafeFile(
                f"{file.path} is code, and a version must not bring its own; use an architecture that vLLM knows, "
                "or leave the file out"
            )
        if suffix != ".safetensors" and _is_pickle(file.real):
            raise UnsafeFile(f"{file.path} is a pickle by its content; {CONVERT}")


def _is_pickle(path: Path) -> bool:
    """Pickle protocols 2 to 5 by their first two bytes, zip archives of pickles, numpy files of objects."""
    with path.open("rb") as file:
        start = file.read(4096)
    if start[:1] == b"\x80" and start[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        return True
    if start.startswith(b"\x93NUMPY"):
        return b"'|O'" in start or b"'O'" in start
    return start.startswith(b"PK\x03\x04") and _zip_holds_pickle(path)


def _zip_holds_pickle(path: Path) -> bool:
    """Torch's archives hold data.pkl; numpy's .npz may hold arrays of objects: neither belongs in a version."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return True  # an archive that cannot be looked into is not let in
    return any(name.endswith((".pkl", ".npy", ".pickle")) for name in names)


def _refuse_incomplete(files: Sequence[SourceFile]) -> None:
    names = {f.path for f in files}
    missing = []
    if "config.json" not in names:
        missing.append("config.json")
    if not any("/" not in n and n.endswith(".safetensors") for n in names):
        missing.append("weights (*.safetensors)")
    if not any(n in TOKENIZER_FILES or ("/" not in n and n.endswith(".tiktoken")) for n in names):
        missing.append("tokenizer (tokenizer.json, tokenizer.model, vocab.txt, ...)")
    if missing:
        raise IncompleteSource(
            f"the source has no {' and no '.join(missing)}; it needs what model.save_pretrained and "
            "tokenizer.save_pretrained write, at its top"
        )
    for file in files:
        if file.path.endswith(".safetensors.index.json"):
            _refuse_missing_shards(file, names)


def _refuse_missing_shards(index: SourceFile, names: set[str]) -> None:
    try:
        shards = set(json.loads(index.real.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BrokenWeights(f"{index.path} cannot be read ({error}); save the model anew") from error
    folder = PurePosixPath(index.path).parent
    absent = sorted(s for s in map(str, shards) if str(folder / s) not in names)
    if absent:
        raise IncompleteSource(
            f"{len(absent)} of {len(shards)} weight files that {index.path} names are missing, first {absent[0]}; "
            "copy them all"
        )


def check_safetensors(path: Path) -> None:
    """Check a safetensors file's header: it parses, and its tensors fill the file exactly.

    The format: eight bytes with the header's length N (little-endian), N bytes of JSON, then the tensors one after
    the other without a gap. So a file cut off anywhere is found from its header and its size alone.

    Raises:
        BrokenWeights: it is cut off, longer than it says, or no safetensors at all.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise BrokenWeights(f"{path.name} has {size} bytes and no header; {_COPY_ANEW}")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise BrokenWeights(f"{path.name} announces a header of {length} bytes in {size}; {_COPY_ANEW}")
        header = _parse_header(path.name, file.read(length))
    end = 0
    for name, begin, stop in sorted(header, key=lambda t: t[1:]):
        if begin != end:
            raise BrokenWeights(f"{path.name}: tensor {name} begins at {begin}, not at {end}; {_COPY_ANEW}")
        end = stop
    if end != size - 8 - length:
        raise BrokenWeights(
            f"{path.name} is cut off or too long: its tensors take {end} bytes, it holds {size - 8 - length}; "
            f"{_COPY_ANEW}"
        )


_COPY_ANEW = "copy or save the file anew"


def _parse_header(name: str, text: bytes) -> list[tuple[str, int, int]]:
    """Each tensor's name, first byte and end."""
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = [(str(k), *_offsets(v)) for k, v in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenWeights(f"{name} has no readable safetensors header ({error}); {_COPY_ANEW}") from error
    return tensors


def _offsets(tensor: dict[str, object]) -> tuple[int, int]:
    shape, span = tensor["shape"], tensor["data_offsets"]
    if not isinstance(span, list) or not isinstance(shape, list):
        raise TypeError("shape and data_offsets must be lists")
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, *span)):
        raise ValueError("negative or fractional sizes")
    begin, stop = span
    bits = _DTYPE_BITS.get(str(tensor["dtype"]))
    if stop < begin or (bits is not None and math.prod(shape) * bits != (stop - begin) * 8):
        raise ValueError(f"{tensor['dtype']} of shape {shape} does not fit bytes {begin} to {stop}")
    return begin, stop
