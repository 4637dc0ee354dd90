"""The real client downloads a competition's data from the loopback server."""

import io
import os
import shutil
import tempfile
import time
import zipfile

import pytest
from kaggle_server import Competition, Kaggle

from comp.errors import Refused
from comp.kaggle import api, client


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("KAGGLE_")] + ["XDG_CONFIG_HOME"]:
        monkeypatch.delenv(name, raising=False)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    data = tmp_path / "data"
    (data / "train/images").mkdir(parents=True)
    (data / "train/images/a.png").write_bytes(b"an image" * 1000)
    (data / "depths.csv").write_text("id,z\n")
    for name, inside in (("masks.zip", "a.png"), ("stage1.zip", "stage1/a/b.png")):  # as some competitions nest them
        with zipfile.ZipFile(data / name, "w") as archive:
            archive.writestr(inside, b"inner")
            archive.writestr("__MACOSX/._x.zip", b"no archive")
    with Kaggle(tmp_path / "server") as server:
        (tmp_path / "server").mkdir()
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "home"))
        client.log_in.cache_clear()
        server.competitions = {"cells": Competition(data), "venus": Competition(data, joined=False)}
        yield server
    client.log_in.cache_clear()


WHOLE = {"depths.csv", "train/images/a.png", "masks/a.png", "stage1/a/b.png"}


def contents(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_it_comes_whole_opened_and_once(kaggle, tmp_path):
    place = tmp_path / "input"
    there = api.download_competition("cells", place)
    assert there == place / "cells" and contents(place) == {f"cells/{name}" for name in WHOLE}
    assert api.download_competition("cells", place) == there
    assert kaggle.count("DownloadDataFiles") == 1


def test_a_lost_connection_and_a_start_that_was_killed_cost_nothing(kaggle, tmp_path, monkeypatch):
    kaggle.plant("file", 0)  # the connection is dropped
    place = tmp_path / "input"
    with monkeypatch.context() as patch:
        patch.setattr(api, "_open_archive", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            api.download_competition("cells", place)
    assert not (place / "cells").exists()
    assert contents(api.download_competition("cells", place)) == WHOLE
    assert {path.name for path in place.iterdir()} == {"cells"}


@pytest.mark.parametrize("name", ["venus", "no-such-thing"])
def test_a_competition_that_was_not_joined_is_one_line(kaggle, tmp_path, name):
    with pytest.raises(Refused, match=f"{name}: not joined.*{name}/rules"):
        api.download_competition(name, tmp_path / "input")
    assert not (tmp_path / "input").exists()


def test_no_credentials_and_no_disk_are_one_line(kaggle, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(Refused, match="opened it takes 0 MB; the disk has 0 MB free"):
        api.download_competition("cells", tmp_path / "input")
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    client.log_in.cache_clear()
    with pytest.raises(Refused, match="no Kaggle credentials"):
        api.download_competition("cells", tmp_path / "input")


@pytest.mark.parametrize("nested", [False, True])
def test_what_came_damaged_is_fetched_again(kaggle, tmp_path, monkeypatch, nested):
    broken = io.BytesIO()
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("a.csv", "id\n" * 100, zipfile.ZIP_DEFLATED)
    damaged = bytearray(broken.getvalue())
    damaged[40] ^= 0xFF
    if nested:
        with zipfile.ZipFile(broken := io.BytesIO(), "w") as archive:
            archive.writestr("inner.zip", bytes(damaged))
        damaged = broken.getvalue()
    with monkeypatch.context() as patch:
        patch.setattr(Kaggle, "file", lambda *_: bytes(damaged))
        with pytest.raises(Refused, match=r"cells: came damaged .*downloads it again"):
            api.download_competition("cells", tmp_path / "input")
    assert contents(api.download_competition("cells", tmp_path / "input")) == WHOLE
