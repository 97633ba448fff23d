"""`verify_files`: whether weight files are bit for bit those that were published.

A flipped bit in a tensor's data breaks no rule of any format; only a checksum tells. Three places know a file's
SHA-256: the hub's cache, which names a large file by it; the RECORD of the installed package that carries the file; and
a list that lies beside it, as `sha256sum` writes one (``SHA256SUMS``, ``NAME.sha256``).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bestiary.api.errors import CorruptWeights, LoadError

from .config_json import open_regular

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LINE = re.compile(r"(?P<digest>[0-9a-fA-F]{64}) [ *](?P<name>.+)")
_LISTS = ("SHA256SUMS", "sha256sums.txt")
_MAX_LIST_BYTES = 16 << 20
_CHUNK = 4 << 20
_LEVELS = 6
"""How far above a file the package that carries it may be rooted."""


def verify_files(files: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> None:
    """Hash every file and compare; `progress` is told (bytes done, bytes in all).

    Raises:
        LoadError: NO_CHECKSUM, for files that no place knows. CorruptWeights: CHECKSUM_MISMATCH. Both name all files.
    """
    known = {file: known_sha256(file) for file in files}
    if not files:
        raise LoadError("there are no weight files to verify", code="NO_CHECKSUM", field="verify")
    unknown = [file.name for file, digest in known.items() if digest is None]
    if unknown:
        raise LoadError(
            f"nothing says what {len(unknown)} weight file(s) should hold",
            code="NO_CHECKSUM",
            field="verify",
            value=unknown[0],
            limit="a file of the hub's cache, of an installed package, or in a SHA256SUMS beside it",
            details=unknown,
            fix="sha256sum FILE > FILE.sha256 where you trust it, or leave out --verify",
        )
    done, total = 0, sum(file.stat().st_size for file in files)
    differing = []
    for file, digest in known.items():
        hasher = hashlib.sha256()
        for chunk in _chunks(file):
            hasher.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
        if hasher.hexdigest() != digest:
            differing.append(f"{file.name}: {hasher.hexdigest()}, published as {digest}")
    if differing:
        raise CorruptWeights(
            f"{len(differing)} of {len(files)} weight file(s) differ from what was published",
            code="CHECKSUM_MISMATCH",
            field=str(files[0].parent),
            details=differing,
            fix="download them again",
        )


def known_sha256(file: Path) -> str | None:
    """The SHA-256 that the file was published with, in lower-case hexadecimal; None where no place knows it."""
    blob = file.resolve()
    if blob.parent.name == "blobs" and _DIGEST.fullmatch(blob.name):
        return blob.name
    return _from_list(file) or _from_package(file)


def _from_list(file: Path) -> str | None:
    for listing in (file.with_name(f"{file.name}.sha256"), *(file.with_name(name) for name in _LISTS)):
        if listing.exists():
            with open_regular(listing, LoadError) as opened:
                lines = opened.read(_MAX_LIST_BYTES).decode("utf-8", "replace").splitlines()
            for match in filter(None, map(_LINE.fullmatch, lines)):
                if match["name"].removeprefix("./") == file.name:
                    return match["digest"].lower()
    return None


def _from_package(file: Path) -> str | None:
    """From the RECORD of the distribution that lists the file, in a folder above it."""
    file = file.absolute()
    for root in file.parents[:_LEVELS]:
        name = file.relative_to(root).as_posix()
        for record in root.glob("*.dist-info/RECORD"):
            text = record.read_text("utf-8", "replace")
            if name not in text:
                continue
            for row in csv.reader(text.splitlines()):
                if row[:1] == [name] and len(row) > 1 and row[1].startswith("sha256="):
                    encoded = row[1].removeprefix("sha256=")
                    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
    return None


def _chunks(file: Path) -> Iterator[bytes]:
    with open_regular(file, LoadError) as opened:
        while chunk := opened.read(_CHUNK):
            yield chunk
