"""One script that holds an entry script, its arguments, `comp` and what Kaggle's image lacks.

    print(script(pack(Path("kernels/train_fold.py"), ["--competition", "mars", "--fold", "0"])))

Kaggle uploads one file and nothing beside it, so everything travels inside that file, as a zip of
Python sources in xz in base85. Only these ever enter a pack: the entry script, the .py, .toml, .html and .mplstyle
files of `comp`, the .py files, licence and METADATA of segmentation-models-pytorch, and the TOML files that
the arguments name, with those of the same folder that these name. So credentials, which lie in none of them, cannot.
"""

import atexit
import base64
import functools
import hashlib
import inspect
import io
import lzma
import os
import runpy
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from comp import config
from comp.errors import Refused
from comp.kaggle import credentials

LIMIT = 1_000_000  # bytes of source; Kaggle answers HTTP 400 to more
FIGURES = """from pathlib import Path

from IPython.display import Image, display

for figure in sorted(Path("runs").rglob("*.png")):
    print(figure)
    display(Image(str(figure)))"""
LACKING = "segmentation-models-pytorch"  # what comp needs and Kaggle's image has not; pure Python


@dataclass(frozen=True)
class Pack:
    """One job, ready to be written as a script or as a notebook."""

    entry: str  # file name of the entry script
    arguments: tuple[str, ...]  # "pack:" at the start of one stands for the unpacked archive
    archive: str  # base85 of xz of zip
    sha256: str  # of the zip, which unlike xz is the same whatever library wrote it


def pack(entry: Path, arguments: Sequence[str] = ()) -> Pack:
    """Pack an entry script with its arguments; the same input gives the same bytes.

    TOML files that the arguments name travel inside, and those beside them that they name. Raises Refused for
    one that names a TOML file of another folder, and for a pack that Kaggle would not take.
    """
    words, carried = _carried(arguments)
    data = _zip({f"kernels/{entry.name}": entry.read_bytes()} | _comp() | _distribution(LACKING) | carried)
    result = Pack(entry.name, tuple(words), _archive(data), hashlib.sha256(data).hexdigest())
    write_script(result)  # refuses what is too large
    return result


# This function is copied into every script, so it uses nothing of comp.
def run(archive: str, sha256: str, entry: str, arguments: list[str]) -> None:
    """Run the entry script of an archive as `python kernels/ENTRY ARGUMENTS…` would, in this working folder."""
    # albumentations looks for an update when it is imported, and stalls without a network.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    data = lzma.decompress(base64.b85decode("".join(archive.split())))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SystemExit("the archive in this script is damaged; make the pack again")
    folder = tempfile.mkdtemp(prefix="comp-")
    # At exit and not sooner, since a traceback reads its lines from these files.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    zipfile.ZipFile(io.BytesIO(data)).extractall(folder)
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = folder  # for processes that this one starts or becomes
    print(f"pack sha256 {sha256}", flush=True)
    path = os.path.join(folder, "kernels", entry)
    sys.argv = [path]
    for word in arguments:
        sys.argv.append(os.path.join(folder, word[len("pack:") :]) if word.startswith("pack:") else word)
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        if end.code:  # a notebook shows even exit status 0 as an error
            raise


def write_script(pack: Pack) -> str:
    """The pack as Python source. Raises Refused if it is too large for Kaggle."""
    return within_limit("\n\n".join(_parts(pack)) + "\n", "packed script")


def write_notebook(pack: Pack) -> str:
    """The pack as a notebook: archive folded away, then the job and its figures. Raises Refused if it is too large."""
    from nbformat import v4, writes

    about = f"# {pack.entry}\n\nThe folded cell holds the library; run all cells. "
    about += "Add the competition's data first (*Add input*)."
    library, job = _parts(pack)
    folded = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}}
    # Ids of their own, so that the same pack gives the same bytes.
    cells = [
        v4.new_markdown_cell(about, id="about"),
        v4.new_code_cell(library, id="archive", metadata=folded),
        v4.new_code_cell(job, id="job"),
        v4.new_code_cell(FIGURES, id="figures"),
    ]
    machine = {"accelerator": "nvidiaTeslaT4", "isGpuEnabled": True, "isInternetEnabled": False}
    metadata = {
        "kaggle": machine | {"language": "python", "sourceType": "notebook"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return within_limit(writes(v4.new_notebook(cells=cells, metadata=metadata)) + "\n", "packed notebook")


def _parts(pack: Pack) -> tuple[str, str]:
    """What script and notebook share: imports, `run` and the archive; the arguments and the call."""
    lines = "\n".join(pack.archive[at : at + 100] for at in range(0, len(pack.archive), 100))
    library = f'''"""{pack.entry} as one file for Kaggle: nothing to install, no internet needed.

Written by comp.kaggle.packing. The archive holds {pack.entry}, comp and {LACKING};
it is unpacked to a temporary folder. The arguments below it may be changed.
"""

import atexit, base64, hashlib, io, lzma, os, runpy, shutil, sys, tempfile, zipfile


{inspect.getsource(run)}

ARCHIVE = """
{lines}
"""'''
    words = "".join(f"    {word!r},\n" for word in pack.arguments)
    job = f"""ARGUMENTS = [
{words}]

if __name__ == "__main__":
    run(ARCHIVE, {pack.sha256!r}, {pack.entry!r}, ARGUMENTS)"""
    return library, job


def within_limit(text: str, what: str) -> str:
    """The text. Raises Refused if it is too large for Kaggle."""
    size = len(text.encode())
    if size >= LIMIT:
        raise Refused(f"the {what} has {size:,} bytes; Kaggle takes fewer than {LIMIT:,}")
    return text


def _carried(arguments: Sequence[str]) -> tuple[list[str], dict[str, bytes]]:
    """The arguments as the kernel gets them, and the TOML files that travel with them."""
    words: list[str] = []
    carried: dict[str, bytes] = {}
    for word in arguments:
        option, _, path = word.rpartition("=") if word.startswith("--") else ("", "", word)
        if path.endswith(".toml"):
            place = f"given/{len(carried)}"
            carried |= {f"{place}/{name}": data for name, data in _tomls(Path(path)).items()}
            travels = f"pack:{place}/{Path(path).name}"
            words += [option, travels] if option else [travels]
        else:
            words.append(word)
    return words, carried


def _tomls(path: Path) -> dict[str, bytes]:
    """A TOML file, its base or recipe where that is a file, that one's base, and so on, by their names."""
    found, wanted = {}, [path]
    for path in wanted:  # which grows meanwhile
        values = config.read_toml(path)
        found[path.name] = path.read_bytes()
        credentials.refuse_credentials([path])
        for key in ("base", "recipe"):
            other = str(values.get(key, ""))
            if other.endswith(".toml") and Path(other).name != other:
                raise Refused(f"{path}: {key} = {other}: only files of its own folder travel with it")
            if other.endswith(".toml") and other not in found:
                wanted.append(path.with_name(other))
    return found


def _comp() -> dict[str, bytes]:
    root = Path(__file__).parents[1]
    found = [path for kind in ("*.py", "*.toml", "*.html", "*.mplstyle") for path in root.rglob(kind)]
    # Names that start with a dot are files still being written.
    return {f"comp/{path.relative_to(root).as_posix()}": path.read_bytes() for path in found if path.name[0] != "."}


def _distribution(name: str) -> dict[str, bytes]:
    """The Python files and licence of an installed distribution."""
    return {
        file.as_posix(): file.read_binary()
        for file in metadata.files(name) or ()
        if file.suffix == ".py" or file.name == "METADATA" or file.name.upper().startswith("LICEN")
    }


@functools.lru_cache(maxsize=1)  # the folds of a run differ in their arguments alone
def _archive(data: bytes) -> str:
    return base64.b85encode(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)).decode()


def _zip(files: dict[str, bytes]) -> bytes:
    """A stored zip: sorted names, one fixed date, so that the bytes depend on the files alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name)  # dated 1980
            info.create_system = 3  # Unix, wherever it was made
            archive.writestr(info, files[name])
    return buffer.getvalue()
