"""The sandbox: what a script finds in it is what a Kaggle kernel without internet finds."""

import os
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from comp.errors import Refused
from comp.kaggle import packing, sandbox

pytestmark = pytest.mark.slow

REASON = sandbox.find_unshare()[1]
needs_namespaces = pytest.mark.skipif(bool(REASON), reason=f"no namespaces on this system: {REASON}")


@pytest.fixture
def run(tmp_path_factory):
    """Rehearse a script quietly, in a working folder of its own."""

    def rehearse(script, inputs=None, working=None):
        working, log, start = working or tmp_path_factory.mktemp("working"), [], time.monotonic()
        status = sandbox.run_script(script, inputs or {}, working, log.append)
        return SimpleNamespace(status=status, log="".join(log), seconds=time.monotonic() - start)

    return rehearse


@pytest.fixture
def listener():
    """A server on this machine's loopback; the list fills with those who connected."""
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            while True:
                try:
                    heard.append(server.accept()[1])
                except OSError:
                    return

        threading.Thread(target=listen, daemon=True).start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)


@needs_namespaces
def test_a_pack_runs_and_leaves_its_files(run, tmp_path, capfd):
    entry = tmp_path / "job.py"
    entry.write_text(
        "import sys\nfrom pathlib import Path\nfrom comp import config\n"
        "Path('runs/demo').mkdir(parents=True)\n"
        "Path('runs/demo/metrics.json').write_text(str(config.load_config(sys.argv[2]).epochs))\n"
        "Path('submission.csv').write_text('id\\n')\n"
    )
    (working := tmp_path / "working").mkdir()
    result = run(packing.pack(entry, ["--competition", "demo"]), working=working)
    assert result.status == 0, result.log
    assert (working / "runs/demo/metrics.json").read_text().isdigit()
    assert sorted(os.listdir(working)) == ["runs", "submission.csv"]
    assert "sandbox: no network" in result.log and "Kaggle would keep 2 files" in result.log
    assert "3.00B  submission.csv" in result.log
    assert capfd.readouterr().out == ""


@needs_namespaces
def test_network_is_cut(run, listener):
    port, heard = listener
    result = run(
        f"""
import errno, socket, urllib.request
for address in (("127.0.0.1", {port}), ("1.1.1.1", 53)):
    with socket.socket() as one:
        one.settimeout(3)
        try:
            one.connect(address)
            print("reached", address)
        except OSError as error:
            print("cut", errno.errorcode[error.errno])
try:
    urllib.request.urlopen("http://kaggle.com", timeout=3)
    print("reached")
except OSError as error:
    print("cut", error)
""",
    )
    assert result.log.count("cut ") == 3 and "reached" not in result.log and not heard, result.log
    assert "ENETUNREACH" in result.log


@needs_namespaces
def test_folders_are_kaggles(run, tmp_path):
    (tmp_path / "mars").mkdir()
    (tmp_path / "mars/mars.npz").write_text("arrays")
    inputs = {"mars": tmp_path / "mars", "competitions/mars/mars.npz": tmp_path / "mars/mars.npz"}
    inputs["notebooks/someone/mars-fold-0"] = tmp_path / "mars"
    result = run(
        """
import errno, os
assert __file__ == "/kaggle/src/script.py" and os.getcwd() == "/kaggle/working" and not os.listdir()
for folder in ("mars", "competitions/mars", "notebooks/someone/mars-fold-0"):
    assert open(f"/kaggle/input/{folder}/mars.npz").read() == "arrays"
    for path in (f"/kaggle/input/{folder}/mars.npz", f"/kaggle/input/{folder}/new", "/kaggle/input/new", "/usr/new"):
        try:
            open(path, "w")
            print("written", path)
        except OSError as error:
            assert error.errno == errno.EROFS, error
home = os.path.expanduser("~")
open(os.path.join(home, "mine"), "w").close()
open("/tmp/mine", "w").close()
open("/dev/shm/mine", "w").close()
print("all seen")
""",
        inputs,
    )
    assert "all seen" in result.log and "written" not in result.log, result.log
    assert (tmp_path / "mars/mars.npz").read_text() == "arrays"
    assert not (Path.home() / "mine").exists() and not Path("/tmp/mine").exists() and not Path("/dev/shm/mine").exists()


@needs_namespaces
def test_links_in_an_input_folder_lead_to_their_files(run, tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "big.npz").write_text("arrays")
    (tmp_path / "input/mars.npz").symlink_to(tmp_path / "big.npz")
    result = run("print(open('/kaggle/input/mars/mars.npz').read())", {"mars": tmp_path / "input"})
    assert "arrays\n" in result.log


@needs_namespaces
def test_nothing_of_this_machine_is_seen(run, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "planted-token")
    monkeypatch.setenv("HF_TOKEN", "planted-token")
    secret = tmp_path / "kaggle.json"
    secret.write_text("planted-token")
    repository = Path(__file__).parents[1]
    result = run(f"""
import os, pathlib
for path in ({str(secret)!r}, {str(repository / "comp")!r}, {str(repository / "pyproject.toml")!r}):
    assert not os.path.exists(path), path
for process in pathlib.Path("/proc").glob("[0-9]*/environ"):
    assert b"planted" not in process.read_bytes(), process
print(sorted(os.environ), os.environ["HOME"])
""")
    assert result.status == 0, result.log
    seen = set(eval(result.log[result.log.index("[") : result.log.index("]") + 1]))
    assert seen <= {"PATH", "LANG", "HOME", "KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_URL_BASE", *sandbox.MACHINE, "LC_CTYPE"}


@needs_namespaces
def test_only_the_images_packages_can_be_imported(run):
    result = run(
        """
import importlib.metadata, importlib.util
hidden = "comp segmentation_models_pytorch kaggle kagglesdk pytest _pytest hypothesis ruff"
for name in (hidden + " slugify dotenv jupytext sortedcontainers").split():
    assert importlib.util.find_spec(name) is None, name
for name in ("comp", "segmentation-models-pytorch", "kaggle"):
    try:
        assert not importlib.metadata.version(name), name
    except importlib.metadata.PackageNotFoundError:
        pass
for name in ("torch", "torchvision", "timm", "albumentations", "pandas", "sklearn", "safetensors", "pydantic"):
    assert importlib.util.find_spec(name), name
import cv2, numpy
print("numpy", importlib.metadata.version("numpy"), numpy.ones(3).sum())
""",
    )
    assert "numpy" in result.log and result.status == 0, result.log


@needs_namespaces
def test_a_failing_script_shows_why(run):
    result = run("import sys\nprint('begun')\nraise KeyError('the reason')\n")
    assert result.status == 1
    assert "raise KeyError('the reason')" in result.log and result.log.index("begun") < result.log.index("Traceback")
    assert run("raise SystemExit(3)").status == 3
    assert run("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)").status == 143


@needs_namespaces
def test_a_script_that_leaves_too_much(run, monkeypatch):
    assert sandbox.WORKING_LIMIT == 20e9
    monkeypatch.setattr(sandbox, "WORKING_LIMIT", 2000)
    large = run("open('a', 'wb').write(bytes(3000))")
    assert large.status == 137 and "3.00kB in the working folder, which may hold 2.00kB" in large.log


@needs_namespaces
def test_nothing_outlives_the_script(run):
    result = run(
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)  # left behind'])\n",
    )
    assert result.status == 0 and result.seconds < 30
    commands = [path.read_bytes() for path in processes()]
    assert not any(b"left behind" in command for command in commands)


def processes():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            path.read_bytes()
            yield path
        except OSError:
            continue


def test_without_namespaces_it_refuses_and_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "find_unshare", lambda: ([], "unshare failed: Operation not permitted"))
    with pytest.raises(Refused, match=r"\(unshare failed: Operation not permitted\), so the network cannot be cut"):
        sandbox.run_script("", {}, tmp_path)


def test_a_system_without_unshare_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert sandbox.find_unshare() == ([], "there is no unshare, of util-linux")


@needs_namespaces
def test_output_is_shown_as_it_comes(capfd, tmp_path):
    assert sandbox.run_script("print('zwölf')", {}, tmp_path) == 0
    first, said, *_, last = capfd.readouterr().out.splitlines()
    assert first.startswith("sandbox: no network") and said == "zwölf" and "Kaggle would keep 0 files" in last
