"""The pack: reproducible, small, complete, free of credentials; its job runs as the plain script would."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from base64 import b64decode
from io import BytesIO
from lzma import decompress
from pathlib import Path
from typing import Any

import pytest

from comp.errors import Refused
from comp.kaggle import packing

ENTRY = '''"""A stand-in for an entry script."""

import os
import sys
from pathlib import Path

from comp import config

print("arguments", sys.argv[1:])
print("update", os.environ["NO_ALBUMENTATIONS_UPDATE"], "main", __name__)
if any(word.startswith("--recipe") for word in sys.argv):
    recipe = next(word for word in sys.argv if word.endswith(".toml")).removeprefix("--recipe=")
    print("epochs", config.load_config("demo", recipe).epochs, "shipped", config.shipped_names("competitions"))
Path("out.txt").write_text("done")
if "--fail" in sys.argv:
    config.load_config("nowhere")  # this line is read in the traceback
sys.exit(3 if "--three" in sys.argv else None)
'''


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(ENTRY)
    return path


def contents(pack: str) -> dict[str, bytes]:
    archive = zipfile.ZipFile(BytesIO(decompress(b64decode(constant(pack, "ARCHIVE")))))
    return {name: archive.read(name) for name in archive.namelist()}


def constant(pack: str, name: str) -> Any:
    lines = (line for line in ast.parse(pack).body if isinstance(line, ast.Assign))
    return next(ast.literal_eval(line.value) for line in lines if line.targets[0].id == name)


def start(text: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run a packed script in an empty folder beside it, with nothing of the repository on the path."""
    (folder / "working").mkdir()
    (folder / "script.py").write_text(text)
    command = [sys.executable, "-P", str(folder / "script.py")]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **variables}
    return subprocess.run(command, cwd=folder / "working", env=environment, capture_output=True, text=True)


def test_same_input_gives_same_bytes(entry, tmp_path):
    first = packing.pack(entry, ["--fold", "0"])
    os.utime(entry, (1, 1))
    assert packing.pack(entry, ["--fold", "0"]) == first
    other = tmp_path / "elsewhere" / "train.py"
    other.parent.mkdir()
    other.write_text(ENTRY)
    assert packing.pack(other, ["--fold", "0"]) == first
    entry.write_text(ENTRY + "\n# changed\n")
    assert packing.pack(entry, ["--fold", "0"]) != first


def test_small_enough_with_segmentation_models_inside(entry):
    pack = packing.pack(entry)
    assert {"segmentation_models_pytorch/__init__.py", "comp/train/pages.html"} <= contents(pack).keys()
    assert any("LICENSE" in name for name in contents(pack))
    assert len(pack.encode()) < 400_000
    assert len(packing.make_notebook(pack).encode()) < 400_000


def test_too_large_is_refused(entry, monkeypatch):
    assert packing.LIMIT == 1_000_000
    pack = packing.pack(entry)
    size = len(pack.encode())
    monkeypatch.setattr(packing, "LIMIT", size + 1)
    assert packing.pack(entry) == pack
    monkeypatch.setattr(packing, "LIMIT", size)
    with pytest.raises(Refused, match=f"the pack has {size:,} bytes; Kaggle takes fewer than {size:,}"):
        packing.pack(entry)


@pytest.mark.parametrize("recipe", [("--recipe", "{}"), ("--recipe={}",)])
def test_runs_from_an_empty_folder(entry, tmp_path, recipe):
    own = tmp_path / "mine" / "quick.toml"
    own.parent.mkdir()
    own.write_text("epochs = 7\n")
    pack = packing.pack(
        entry, [*(word.format(own) for word in recipe), "--fold", "0", "--set", 'odd="a b\\"\U0001f600']
    )
    ended = start(pack, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "'--fold', '0', '--set', 'odd=\"a b\\\\\"\U0001f600'" in ended.stdout
    assert "update 1 main __main__" in ended.stdout
    assert "epochs 7 shipped ['airbus'" in ended.stdout
    assert os.listdir(tmp_path / "working") == ["out.txt"]


def test_library_comes_from_the_pack(entry, tmp_path):
    entry.write_text(
        "from importlib.util import find_spec\n"
        "print(find_spec('comp').origin, find_spec('segmentation_models_pytorch').origin)"
    )
    (tmp_path / "temporary").mkdir()
    ended = start(packing.pack(entry), tmp_path, TMPDIR=str(tmp_path / "temporary"))
    assert ended.stdout.count(f"{tmp_path}/temporary/comp-") == 2, ended.stderr


def test_processes_that_it_starts_find_the_library(entry, tmp_path):
    """As torch.distributed.run starts it: the entry script anew, or the packed script, in processes of their own."""
    entry.write_text(
        "import os, subprocess, sys\n"
        "from comp import config\n"
        "print(os.environ.get('DEPTH'), __name__, sys.argv[1:], flush=True)\n"
        "if 'DEPTH' not in os.environ:\n"
        "    os.environ['DEPTH'] = '1'\n"
        "    subprocess.run([sys.executable, os.environ['PACKED'], 'x'], check=True)\n"
        "    os.execv(sys.executable, [sys.executable, *sys.argv])\n"
    )
    ended = start(packing.pack(entry, ["--fold", "0"]), tmp_path, PACKED=str(tmp_path / "script.py"))
    lines = [line for line in ended.stdout.splitlines() if "__main__" in line]
    assert lines == [f"{depth} __main__ ['--fold', '0']" for depth in (None, 1, 1)], ended.stderr


def test_errors_keep_their_traceback_and_status(entry, tmp_path):
    ended = start(packing.pack(entry, ["--fail"]), tmp_path)
    assert ended.returncode == 1
    assert 'config.load_config("nowhere")  # this line is read in the traceback' in ended.stderr
    assert "comp/config.py" in ended.stderr and "Refused: no competition named 'nowhere'" in ended.stderr


def test_exit_status_is_the_entry_scripts(entry, tmp_path):
    assert start(packing.pack(entry, ["--three"]), tmp_path).returncode == 3


@pytest.mark.parametrize("words", [["--recipe", "{}"], ["--recipe={}"], ["--recipes", "default", "{}"]])
def test_tomls_travel(entry, tmp_path, words):
    own = tmp_path / "own.toml"
    own.write_text("epochs = 7\n")
    pack = packing.pack(entry, [word.format(own) for word in words])
    assert constant(pack, "ARGUMENTS") == [word.format("pack:given/0/own.toml") for word in words]
    assert contents(pack)["given/0/own.toml"] == b"epochs = 7\n"


def test_tomls_that_it_names_travel_beside_it(entry, tmp_path):
    texts = {"own": 'recipe = "other.toml"', "other": 'base = "last.toml"', "last": 'base = "other.toml"'}
    for name, text in texts.items():
        (tmp_path / f"{name}.toml").write_text(text)
    pack = packing.pack(entry, ["--competition", str(tmp_path / "own.toml")])
    assert constant(pack, "ARGUMENTS") == ["--competition", "pack:given/0/own.toml"]
    assert {f"given/0/{name}.toml": text.encode() for name, text in texts.items()}.items() <= contents(pack).items()


@pytest.mark.parametrize("section", ["[source]\nreader", "[metric]\nfunction", "[submission]\nfunction"])
def test_python_files_of_a_competition_travel_beside_it(entry, tmp_path, section):
    (tmp_path / "own.toml").write_text(f'name = "x"\n{section} = "own.py"\n')
    with pytest.raises(Refused, match=r"own\.py: no such file"):
        packing.pack(entry, ["--competition", str(tmp_path / "own.toml")])
    (tmp_path / "own.py").write_text("x = 1\n")
    pack = packing.pack(entry, ["--competition", str(tmp_path / "own.toml")])
    assert contents(pack)["given/0/own.py"] == b"x = 1\n"


@pytest.mark.parametrize("line", ['base = "../other.toml"', 'recipe = "/other.toml"'])
def test_a_toml_that_names_one_elsewhere_is_refused(entry, tmp_path, line):
    own = tmp_path / "own.toml"
    own.write_text(line)
    with pytest.raises(Refused, match=r"own\.toml: .*other\.toml: only files of its own folder"):
        packing.pack(entry, ["--recipe", str(own)])


def test_a_toml_with_a_token_in_it_is_refused(entry, tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('title = "KGAT_planted0123456789"')
    with pytest.raises(Refused, match=r"own\.toml: holds a Kaggle key or token"):
        packing.pack(entry, ["--competition", str(own)])


@pytest.mark.parametrize("text", ["epochs = ", "\xff", None])
def test_a_toml_that_cannot_be_read_is_refused(entry, tmp_path, text):
    own = tmp_path / "own.toml"
    if text is not None:
        own.write_text(text, encoding="latin-1")
    with pytest.raises(Refused, match=r"own\.toml"):
        packing.pack(entry, ["--competition", str(own)])


@pytest.mark.parametrize("word", ["a\0b.toml", "\udc80.toml", "/" * 5000 + ".toml", ""])
def test_odd_arguments_are_packed_or_refused(entry, word):
    if not word:
        assert constant(packing.pack(entry, [word]), "ARGUMENTS") == [""]
    else:
        with pytest.raises(Refused):
            packing.pack(entry, ["--recipe", word])


def test_planted_credentials_are_in_no_pack(entry, tmp_path, monkeypatch):
    token = "KGAT_planted0123456789"
    library = tmp_path / "repository" / "comp"
    (library / "recipes").mkdir(parents=True)
    (library / "__init__.py").touch()
    (library / "kaggle").mkdir()
    shutil.copy(Path(packing.__file__).with_name("script.template"), library / "kaggle")
    (library / "recipes" / "default.toml").write_text("epochs = 1\n")
    notebook = json.dumps({"cells": [{"cell_type": "code", "source": f"os.environ['KAGGLE_KEY'] = '{token}'"}]})
    planted = {"kaggle.json": json.dumps({"key": token}), ".env": f"KAGGLE_KEY={token}", "look.ipynb": notebook}
    planted |= {"access_token": token, ".py": token, ".123.config.py": token}
    for folder in (library, library / "recipes", library.parent, entry.parent):
        for name, text in planted.items():
            (folder / name).write_text(text)
    monkeypatch.chdir(library.parent)
    monkeypatch.setenv("HOME", str(library.parent))
    monkeypatch.setattr(packing, "__file__", str(library / "kaggle" / "packing.py"))
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_KEY", "KAGGLE_USERNAME"):
        monkeypatch.setenv(name, token)
    pack = packing.pack(entry, ["--fold", "0"])
    packed = contents(pack)
    assert {name for name in packed if name.startswith("comp/")} == {"comp/__init__.py", "comp/recipes/default.toml"}
    assert not any(token.encode() in data or token in name for name, data in packed.items())
    assert token not in pack + packing.make_notebook(pack)


def test_notebook_is_valid_and_runs_its_job(entry, tmp_path):
    text = packing.make_notebook(packing.pack(entry, ["--fold", "0"]))
    document = json.loads(text)
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids)
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.reads(text, as_version=4))
    unpacking, job = document["cells"]
    assert unpacking["metadata"]["jupyter"]["source_hidden"] and job["source"].count("\n") < 10
    source = "".join(unpacking["source"]) + "\n" + "".join(job["source"])
    ended = start(source, tmp_path)
    assert ended.returncode == 0 and "arguments ['--fold', '0']" in ended.stdout, ended.stderr
