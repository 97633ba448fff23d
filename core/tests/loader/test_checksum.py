"""`verify_files`: every flipped bit is found, wherever the checksum comes from (rows M09 and F11)."""

import base64
import hashlib
import random
from pathlib import Path

import pytest

from bestiary.api.errors import CorruptWeights, LoadError
from bestiary.engine.loader.checksum import known_sha256, verify_files

DATA = bytes(range(256)) * 300
DIGEST = hashlib.sha256(DATA).hexdigest()


def in_a_list(root: Path) -> Path:
    (root / "SHA256SUMS").write_text(f"{'0' * 64}  other.gguf\n{DIGEST.upper()} *./model.gguf\n")
    return root / "model.gguf"


def in_a_list_of_its_own(root: Path) -> Path:
    (root / "model.gguf.sha256").write_text(f"{DIGEST}  model.gguf\n")
    return root / "model.gguf"


def in_the_hub_s_cache(root: Path) -> Path:
    snapshot = root / "models--o--n" / "snapshots" / ("a" * 40)
    blobs = root / "models--o--n" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (snapshot / "model.gguf").symlink_to(blobs / DIGEST)
    return snapshot / "model.gguf"


def in_a_package(root: Path) -> Path:
    info = root / "weights-1.0.dist-info"
    info.mkdir()
    encoded = base64.urlsafe_b64encode(bytes.fromhex(DIGEST)).rstrip(b"=").decode()
    (info / "RECORD").write_text(f"weights/data/model.gguf,sha256={encoded},{len(DATA)}\n{info.name}/RECORD,,\n")
    (root / "weights" / "data").mkdir(parents=True)
    return root / "weights" / "data" / "model.gguf"


PLACES = [in_a_list, in_a_list_of_its_own, in_the_hub_s_cache, in_a_package]


@pytest.mark.parametrize("place", PLACES)
def test_an_intact_file_passes_and_every_flipped_bit_is_found(place, tmp_path):
    file, chosen = place(tmp_path), random.Random(1)
    file.write_bytes(DATA)
    told = []
    verify_files([file], lambda done, total: told.append((done, total)))
    assert told[-1] == (len(DATA), len(DATA))
    for _ in range(50):
        flipped = bytearray(DATA)
        flipped[chosen.randrange(len(DATA))] ^= 1 << chosen.randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(CorruptWeights) as caught:
            verify_files([file])
        assert caught.value.error_code == "CHECKSUM_MISMATCH"
        assert DIGEST in caught.value.details[0]


def test_a_file_that_nobody_vouches_for_is_an_error_and_all_are_named(tmp_path):
    good = in_a_list(tmp_path)
    files = [good, tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for file in files:
        file.write_bytes(DATA)
    assert known_sha256(good) == DIGEST
    with pytest.raises(LoadError) as caught:
        verify_files(files)
    assert caught.value.error_code == "NO_CHECKSUM"
    assert caught.value.details == ("a.gguf", "b.gguf")
    with pytest.raises(LoadError, match="no weight files"):
        verify_files([])
