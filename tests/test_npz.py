"""Members of an npz are found where they lie, streamed with flat memory, and never unpickled."""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from comp.data import npz
from comp.errors import Refused


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def raw(path, header: bytes, data: bytes = b"", name: str = "a.npy"):
    """An npz whose only member has this text as its npy header."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)
    return path


def test_a_stored_member_is_mapped_where_it_lies(tmp_path):
    path = tmp_path / "own.npz"
    first, second = np.arange(24).reshape(2, 3, 4), np.arange(5, dtype=np.uint8)
    np.savez(path, first=first, second=second)
    assert npz.list_keys(path) == ["first", "second"]
    for key, expected in {"first": first, "second": second}.items():
        view = npz.map_member(npz.read_member(path, key))
        np.testing.assert_array_equal(view, expected)
        assert not view.flags.writeable and not view.flags.owndata


def test_the_local_header_decides_where_data_starts(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, a=np.arange(9))
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("a.npy")
        central = info.header_offset + 30 + len(info.filename) + len(info.extra)
    member = npz.read_member(path, "a")
    assert member.offset != central + member.header  # numpy writes an extra field into the local one only
    np.testing.assert_array_equal(npz.map_member(member), np.arange(9))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_blocks_are_the_rows_in_order(tmp_path, monkeypatch, save):
    monkeypatch.setattr(npz, "BLOCK", 100)
    values = np.random.default_rng(0).normal(size=(23, 3, 2))
    save(tmp_path / "own.npz", a=values)
    blocks = list(npz.iterate_blocks(npz.read_member(tmp_path / "own.npz", "a")))
    assert [first for first, _ in blocks] == list(range(0, 23, 2))
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in blocks]), values)


def test_blocks_keep_memory_flat(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "BLOCK", 1 << 20)
    np.savez_compressed(tmp_path / "own.npz", a=np.zeros((80, 256, 256)))
    member = npz.read_member(tmp_path / "own.npz", "a")
    tracemalloc.start()
    rows = sum(len(block) for _, block in npz.iterate_blocks(member))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 80
    assert peak < 8 << 20  # the array is 42 MB


def test_an_object_array_is_refused_and_not_unpickled(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, a=np.array([Bomb(tmp_path / "harm")], dtype=object))
    with pytest.raises(Refused, match=r"own\.npz: a: an array of object"):
        npz.read_member(path, "a")
    assert not (tmp_path / "harm").exists()


def test_a_missing_key_names_those_there_are(tmp_path):
    np.savez(tmp_path / "own.npz", one=[1], two=[2])
    with pytest.raises(Refused, match="no array 'three'; there are one, two"):
        npz.read_member(tmp_path / "own.npz", "three")


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (9,)}",  # of which two bytes are there
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (0, 1267650600228229401496703205376)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -2)}",
        b"{'descr': [('x', '|u1')], 'fortran_order': False, 'shape': (2,)}",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (2,)}",
        b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (2,)}",
        b"__import__('os').abort()",
        b"(" * 5000,
        b"\xff\xfe",
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header):
    path = raw(tmp_path / "own.npz", header, b"ab")
    with pytest.raises(Refused, match=r"own\.npz: a: "):
        member = npz.read_member(path, "a")
        assert 0 not in member.shape, "an empty array is the caller's to refuse"
        npz.read_array(member)


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -30])
def test_a_truncated_file_is_refused(tmp_path, keep):
    whole = io.BytesIO()
    np.savez(whole, a=np.arange(1000))
    (tmp_path / "own.npz").write_bytes(whole.getvalue()[:keep])
    with pytest.raises(Refused, match=r"own\.npz: cannot be read as an npz: .*; copy it again"):
        npz.read_member(tmp_path / "own.npz", "a")


def test_damaged_data_does_not_pass_the_checksum(tmp_path):
    path = tmp_path / "own.npz"
    np.savez_compressed(path, a=np.random.default_rng(0).normal(size=(50, 50)))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(Refused, match=r"own\.npz: a: "):
        list(npz.iterate_blocks(npz.read_member(path, "a")))


def test_any_compression_that_zipfile_knows_is_read(tmp_path):
    data = io.BytesIO()
    np.save(data, np.arange(9))
    with zipfile.ZipFile(tmp_path / "own.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", data.getvalue())
    member = npz.read_member(tmp_path / "own.npz", "a")
    assert member.offset is None
    np.testing.assert_array_equal(npz.read_array(member), np.arange(9))


def test_fortran_order_is_refused(tmp_path):
    np.savez(tmp_path / "own.npz", a=np.asfortranarray(np.arange(6).reshape(3, 2)))
    with pytest.raises(Refused, match="ascontiguousarray"):
        npz.read_member(tmp_path / "own.npz", "a")


def test_what_is_written_can_be_mapped(tmp_path):
    path = tmp_path / "own.npz"
    parts = [np.full((2, 3), 1.5), np.full((1, 3), 2.5)]
    npz.write_npz(path, [("ids", (3,), "<U2", [np.array(["a", "bc", "d"])]), ("p", (3, 3), np.float16, parts)])
    np.testing.assert_array_equal(npz.map_member(npz.read_member(path, "p")), np.concatenate(parts).astype(np.float16))
    assert npz.read_array(npz.read_member(path, "ids")).tolist() == ["a", "bc", "d"]
    with np.load(path) as loaded:
        assert loaded["p"].dtype == np.float16


def test_a_compressed_member_is_not_mapped(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(4000, np.uint8))
    with pytest.raises(Refused, match="compressed, so it cannot be mapped"):
        npz.map_member(npz.read_member(tmp_path / "a.npz", "x"))
