"""One script that holds an entry script, its arguments, `comp` and what Kaggle's image lacks.

Kaggle uploads one file, so everything travels inside it, as a stored zip in xz in base64. Only these ever enter a
pack: the entry script, the .py, .toml, .html and .mplstyle files of `comp`, the .py files, licence and METADATA of
segmentation-models-pytorch, and the TOML files that the arguments name, with the TOML and Python files of the same
folder that these name. So credentials, which lie in none of them, cannot."""

import base64
import io
import json
import lzma
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from comp import config
from comp.errors import Refused
from comp.kaggle import credentials

LIMIT = 1_000_000  # bytes of source; Kaggle answers HTTP 400 to more
LACKING = "segmentation-models-pytorch"  # what comp needs and Kaggle's image has not; pure Python


def pack(entry: Path, arguments: Sequence[str] = ()) -> str:
    """Pack an entry script with its arguments as the source of one script; the same input gives the same bytes.

    Raises Refused for a pack too large for Kaggle, and for a TOML file that names one of another folder."""
    words, sources = _carry_tomls(arguments)
    sources[f"kernels/{entry.name}"] = entry.read_bytes()
    root = Path(__file__).parents[1]
    for path in root.rglob("[!.]*"):  # with a dot begins a file that is still being written
        if path.suffix in (".py", ".toml", ".html", ".mplstyle"):
            sources[f"comp/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    for file in metadata.files(LACKING) or ():
        if file.suffix == ".py" or file.name == "METADATA" or file.name.startswith("LICEN"):
            sources[file.as_posix()] = file.read_binary()
    # All dated 1980, so that it depends on the sources alone.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as stored:
        for name in sorted(sources):
            stored.writestr(zipfile.ZipInfo(name), sources[name])
    archive = base64.encodebytes(lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)).decode()
    given = "".join(f"    {word!r},\n" for word in words)
    template = Path(__file__).with_name("script.template").read_text(encoding="utf-8")
    script = template.format(entry=entry.name, archive=archive, arguments=given)
    if (size := len(script.encode())) >= LIMIT:
        raise Refused(f"the pack has {size:,} bytes; Kaggle takes fewer than {LIMIT:,}")
    return script


def make_notebook(script: str) -> str:
    """A packed script as a notebook's JSON, as the client sends it: archive folded away, then the job."""
    from nbformat import v4

    library, arguments, job = script.partition("ARGUMENTS = [")
    hidden = {"jupyter": {"source_hidden": True}, "_kg_hide-input": True}
    # Ids of their own, so that the same pack gives the same bytes.
    cells = [v4.new_code_cell(library, id="archive", metadata=hidden), v4.new_code_cell(arguments + job, id="job")]
    machine = {"accelerator": "nvidiaTeslaT4", "isGpuEnabled": True, "isInternetEnabled": False}
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps(v4.new_notebook(cells=cells, metadata={"kaggle": machine, "kernelspec": python}))


def _carry_tomls(arguments: Sequence[str]) -> tuple[list[str], dict[str, bytes]]:
    """The arguments as the kernel gets them, and the files that travel with them, by their paths in the pack."""
    words, carried = list[str](), dict[str, bytes]()
    for word in arguments:
        option, equals, name = word.rpartition("=") if word.startswith("--") else ("", "", word)
        if name.endswith(".toml"):
            place, wanted = f"given/{len(carried)}", [Path(name)]
            for path in wanted:  # which grows meanwhile
                if path.suffix == ".py" and not path.is_file():
                    raise Refused(f"{path}: no such file")
                values = {} if path.suffix == ".py" else config.read_toml(path)
                credentials.refuse_credentials([path])
                carried[f"{place}/{path.name}"] = path.read_bytes()
                sections = [values, *(section for section in values.values() if isinstance(section, dict))]
                others = [section.get(key) for section in sections for key in ("base", "recipe", "reader", "function")]
                for other in (name for name in map(str, others) if name.endswith((".toml", ".py"))):
                    if "/" in other:
                        raise Refused(f"{path}: names {other}: only files of its own folder travel with it")
                    if f"{place}/{other}" not in carried:
                        wanted.append(path.with_name(other))
            name = f"pack:{place}/{wanted[0].name}"
        words.append(option + equals + name)
    return words, carried
