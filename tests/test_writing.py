"""Files are written whole or not at all; fingerprints distinguish dtype, shape and values."""

import hashlib

import numpy as np
import pytest

from widelimit import memory
from widelimit.fingerprints import sha256
from widelimit.writing import atomic_write


@pytest.mark.parametrize("unfinished", ["", "file.partial"])
def test_a_file_is_replaced_or_left(tmp_path, unfinished):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"before")
    link.symlink_to(path)
    with pytest.raises(TypeError, match="bytes-like"), atomic_write(link, unfinished=unfinished) as stream:
        stream.writelines([b"half", "text"])
    assert path.read_bytes() == b"before"
    with atomic_write(link, unfinished=unfinished) as stream:
        stream.write(b"after")
        assert path.read_bytes() == b"before"
        beside = {p.name for p in tmp_path.iterdir()} - {"file", "link"}
        assert beside == {unfinished} if unfinished else len(beside) == 1
    assert path.read_bytes() == b"after"
    assert {p.name for p in tmp_path.iterdir()} == {"file", "link"}
    assert link.is_symlink()


def test_a_fingerprint_is_sha256_of_the_parts():
    array = np.arange(6.0).reshape(2, 3)
    expected = hashlib.sha256(b"text" + b"bytes" + b"float64(2, 3)" + array.tobytes()).hexdigest()
    assert sha256("text", b"bytes", array) == expected
    assert sha256("text", b"bytes", np.asfortranarray(array)) == expected
    for other in (array.T, array.astype(np.float32), np.nextafter(array, 9), array.reshape(3, 2)):
        assert sha256("text", b"bytes", other) != expected
    assert sha256(np.zeros(())) != sha256(np.zeros(1))
    assert sha256(array.data) == hashlib.sha256(array.tobytes()).hexdigest()


def test_a_budget_is_what_is_given_or_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 8 * memory.GIB)
    assert [memory.budget(share) / memory.GIB for share in (0.0, None, 2.5, 100.0)] == [4, 4, 2.5, 8]
    assert [memory.text(size * memory.GIB) for size in (8, 0.04, 3e-6)] == ["8.0 GiB", "41 MiB", "3.1 KiB"]
    memory.require(8 * memory.GIB, "a thing", limit=8 * memory.GIB)
    with pytest.raises(MemoryError, match=r"a thing needs 9\.0 GiB and the budget is 8\.0 GiB; take less\."):
        memory.require(9 * memory.GIB, "a thing", limit=8 * memory.GIB, remedy="take less")
    with pytest.raises(MemoryError, match=r"a thing needs 9\.0 GiB and 8\.0 GiB are free; take less\."):
        memory.require(9 * memory.GIB, "a thing", limit=10 * memory.GIB, remedy="take less")
