"""Safetensors files, their headers read by us before the library opens them.

The library accepts a name given twice (the last one wins); we refuse it, and check everything else with errors that
name the file, the tensor and the rule. Format: 8 bytes little-endian header length, a JSON object
``{name: {"dtype", "shape", "data_offsets": [begin, end]}}``, then the data, gapless from its first to its last byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import CorruptWeights, PickleRefused

from .config_json import open_regular, parse_json_object

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 32 * 2**20
MAX_DIMENSIONS = 16
MAX_NAME_CHARS = 512
_MAPPED = 128 << 20
"""Bytes of tensors that are read from one mapping of a file: so much of it counts as this process's memory."""

BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits an element, by the format's own names."""

CONVERT = (
    "convert it on a machine where you trust the file, for example "
    "`safetensors.torch.save_file(state_dict, 'model.safetensors')`, or take a repository that offers safetensors"
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A stored tensor without its data: `dtype` is the format's name for it, `nbytes` what it takes in `file`."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path | None = None
    offset: int = 0


def tensor_index(files: Sequence[Path]) -> dict[str, TensorInfo]:
    """Every tensor of the files, in the order of their data; reads headers only.

    Raises:
        CorruptWeights: a header breaks a rule, or two files hold tensors of the same name.
        PickleRefused: a file is a pickle, a zip archive or a tar under a safetensors name.
    """
    index: dict[str, TensorInfo] = {}
    for file in files:
        header = read_header(file)
        twice = [name for name in header if name in index]
        if twice:
            details = [f"{name}: also in {_file_name(index[name])}" for name in twice]
            raise _corrupt(file, "a tensor is in two files", field=twice[0], limit="each name once", details=details)
        index.update(header)
    return index


def iterate_safetensors(files: Sequence[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """`(name, tensor)` in the order of the data, memory-mapped; one is alive at a time if the caller keeps none.

    A file is mapped anew every so many bytes, so that what was read and is not kept no longer counts as memory in use.
    """
    from safetensors import SafetensorError, safe_open

    for file in files:
        for names in _mapped_together(read_header(file)):
            try:
                with safe_open(file, framework="pt", device="cpu") as opened:
                    for name in names:
                        yield name, opened.get_tensor(name)
            except SafetensorError as cause:
                raise _corrupt(file, f"the safetensors library refuses the file: {cause}") from cause


def _mapped_together(header: Mapping[str, TensorInfo]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, info in header.items():
        names.append(name)
        size += info.nbytes
        if size >= _MAPPED:
            yield names
            names, size = [], 0
    if names or not header:
        yield names


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one file, ordered by offset, every rule of the format checked."""
    with open_regular(file, CorruptWeights) as opened:
        size = opened.seek(0, 2)
        opened.seek(0)
        start = opened.read(512)
        _refuse_other_formats(file, start)
        if size < 10:
            raise _corrupt(file, "the file is too short", limit="at least 10 bytes", value=size)
        length = int.from_bytes(start[:8], "little")
        limit = min(MAX_HEADER_BYTES, size - 8)
        if not 2 <= length <= limit:
            rule = f"2 to {limit} bytes ({size} in the file)"
            raise _corrupt(file, "the header's length is refused", field="byte 0", limit=rule, value=length)
        opened.seek(8)
        header = parse_json_object(opened.read(length), name=str(file), error=CorruptWeights)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(file, "__metadata__ is refused", field="__metadata__", limit="strings by name", value=metadata)
    data_start = 8 + length
    tensors = {name: _tensor(file, name, entry, data_start) for name, entry in header.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    _check_layout(file, ordered, data_start, size)
    return ordered


def _tensor(file: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
        rule = f"1 to {MAX_NAME_CHARS} printable characters"
        raise _corrupt(file, "a tensor's name is refused", field=name[:80], limit=rule, value=name)
    if not isinstance(entry, Mapping) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _corrupt(file, f"tensor {name} is refused", field=name, limit="dtype, shape, data_offsets", value=entry)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _corrupt(
            file, f"tensor {name}: unknown dtype", field=f"{name}.dtype", limit=f"one of {', '.join(BITS)}", value=dtype
        )
    if not _are_sizes(shape, MAX_DIMENSIONS):
        rule = f"at most {MAX_DIMENSIONS} integers from 0"
        raise _corrupt(file, f"tensor {name}: bad shape", field=f"{name}.shape", limit=rule, value=shape)
    if not _are_sizes(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        rule = "begin and end, begin ≤ end"
        raise _corrupt(file, f"tensor {name}: bad offsets", field=f"{name}.data_offsets", limit=rule, value=offsets)
    bits, nbytes = math.prod(shape) * BITS[dtype], offsets[1] - offsets[0]
    if bits != nbytes * 8:
        rule = f"{dtype} × {shape} = {bits} bits"
        message = f"tensor {name}: shape and dtype do not make its bytes"
        raise _corrupt(file, message, field=f"{name}.data_offsets", limit=rule, value=f"{nbytes} bytes")
    return TensorInfo(tuple(shape), dtype, nbytes, file, data_start + offsets[0])


def _are_sizes(value: Any, most: int) -> bool:
    """A short list of integers from 0 to 2^63 - 1; Python's integers do not overflow, the library's would."""
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**63 for item in value)
    )


def _check_layout(file: Path, tensors: Mapping[str, TensorInfo], data_start: int, size: int) -> None:
    """The tensors cover the bytes behind the header: no gap, no overlap, nothing past the end, nothing left over."""
    end = data_start
    for name, tensor in tensors.items():
        if tensor.offset != end:
            fault = "leaves a gap before it" if tensor.offset > end else "overlaps the one before it"
            raise _corrupt(
                file, f"tensor {name} {fault}", field=name, limit=f"begins at byte {end}", value=tensor.offset
            )
        end += tensor.nbytes
        if end > size:
            raise _corrupt(
                file, f"tensor {name} ends past the end of the file", field=name, limit=f"{size} bytes", value=end
            )
    if end != size:
        raise _corrupt(
            file, "bytes after the last tensor", field=f"byte {end}", limit=f"{end} bytes in the file", value=size
        )


def _refuse_other_formats(file: Path, start: bytes) -> None:
    """Name what the file really is. A safetensors header opens with ``{`` at byte 8, which none of these do."""
    if start[8:9] == b"{":
        return
    if start[:4] == b"GGUF":
        raise _corrupt(
            file, "this is a GGUF file", limit="safetensors", value="GGUF", fix=f"rename it to {file.stem}.gguf"
        )
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    kind = (
        "zip archive"
        if start[:2] == b"PK"
        else "tar archive"
        if start[257:262] == b"ustar"
        else "pickle"
        if pickled
        else None
    )
    if kind:
        message = f"{file.name} is a {kind} (a torch checkpoint that can run code), not safetensors"
        raise PickleRefused(message, field=str(file), limit="safetensors or GGUF", value=kind, fix=CONVERT)


def _file_name(tensor: TensorInfo) -> str:
    return "another file" if tensor.file is None else tensor.file.name


def _corrupt(file: Path, message: str, *, field: str | None = None, **rest: Any) -> CorruptWeights:
    return CorruptWeights(f"{file.name}: {message}", field=str(file) if field is None else f"{file}: {field}", **rest)
