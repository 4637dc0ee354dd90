"""What all entry scripts share: the words they take, what they say, and the surroundings they start in."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import RECIPE, ROOT, TINY, inside, lay_out

from comp import cli, distributed
from comp.errors import Refused

TRAIN, COMPARE = ("train_fold.py", "--fold", "0"), ("compare.py", "--vary", "epochs", "1", "2")


# Words


@pytest.mark.parametrize("command", [TRAIN, COMPARE])
@pytest.mark.parametrize("given", ["-1", "many", "1000", "33", "", "1.5", "9" * 30])
def test_a_number_of_workers_that_does_not_fit(command, given, tmp_path, monkeypatch, capsys):
    output = inside(monkeypatch, capsys, *command, "--workers", given, cwd=tmp_path, status=2)
    assert f"argument --workers: {given!r} does not fit; 0 to 32 would; --help" in output
    assert len(output.splitlines()) == 1 and len(output) < 150


def test_a_number_of_workers_that_fits():
    assert [cli.workers(text) for text in ("0", "1", "32")] == [0, 1, 32]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train_fold.py", "--flod", "0"), "no option --flod; did you mean '--fold'?"),
        (("train_fold.py", "--flod=0"), "no option --flod; did you mean '--fold'?"),
        (("submit.py", "--mesage", "x"), "no option --mesage; did you mean '--message'?"),
        (("train_fold.py",), "the following arguments are required: --fold"),
        (("train_fold.py", "--fold", "9"), "fold 9: there are folds 0 to 4; write one, several as 0,1, all, or full"),
        (("ensemble.py", "--folds", "full,0"), "no finished fold"),
        ((*COMPARE, "--fold", "full"), "fold full: there are folds 0 to 4; write one, several as 0,1, or all"),
    ],
)
def test_a_word_that_does_not_fit_is_named_with_what_does(words, says, tmp_path, monkeypatch, capsys):
    output = inside(monkeypatch, capsys, *words, cwd=tmp_path, status=2)
    assert says in output.splitlines()[-1]


def test_words_that_only_look_like_options_are_taken():
    parser = cli.Parser("a test")
    parser.add_argument("--message")
    parser.add_argument("file", nargs="?")
    assert parser.parse_args(["--message=--no", "--", "--file"]).file == "--file"
    assert parser.parse_args(["--message", "--not an option"]).message == "--not an option"


def test_ctrl_c_promises_nothing_that_was_not_begun(monkeypatch, capsys):
    def main(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["train_fold.py"])
    monkeypatch.setenv("RANK", "1")  # left over
    with pytest.raises(SystemExit) as ended:
        cli.entry(cli.Parser("a test"), main)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from what is on disk\n"


# Surroundings: each start is a process of its own


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surroundings")
    small = """model = { architecture = "PlainUnet", options = { widths = [4, 8] } }"""
    lay_out(folder, "\n".join(small if line.startswith("model") else line for line in RECIPE.splitlines()))
    return folder


def start(place, script, *arguments, around=(), without=(), **environment):
    """Run an entry script in another environment; return what it printed, as bytes, both streams."""
    command = [*around, sys.executable, str(ROOT / "kernels" / script), *TINY, *arguments]
    surroundings = {name: value for name, value in os.environ.items() if name not in without} | environment
    done = subprocess.run(command, cwd=place, env=surroundings, capture_output=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_terminal_of_latin_1(place, tmp_path):
    """Nothing that is printed ends a run, and files are UTF-8 all the same."""
    surroundings = {"LC_ALL": "en_US.ISO-8859-1", "LOCPATH": str(tmp_path)}
    made = [shutil.which("localedef") or "false", "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / "en_US.ISO-8859-1")]
    if subprocess.run(made, capture_output=True).returncode:
        surroundings = {"PYTHONIOENCODING": "latin-1"}
    toml = (place / "tiny.toml").read_text().replace("[metric]", 'title = "Зёрна → 粒"\n\n[metric]', 1)
    (place / "tiny.toml").write_text(toml, encoding="utf-8")
    # Where our own code left the encoding to the locale, it is an error.
    surroundings |= {"PYTHONWARNDEFAULTENCODING": "1"}
    warned = start(place, "train_fold.py", "--fold", "0", "--run", "latin", without=("PYTHONUTF8",), **surroundings)
    said = warned.decode("latin-1")
    assert "????? ? ?" in said and "IoU truth?0" in said
    warnings = [line for line in said.splitlines() if "EncodingWarning" in line]
    assert warnings and not [line for line in warnings if f"{ROOT}/comp" in line or f"{ROOT}/kernels" in line]
    assert "Зёрна → 粒" in (place / "runs/tiny/latin/report.html").read_text(encoding="utf-8")
    start(place, "ensemble.py", "--folds", "0", "--run", "latin", without=("PYTHONUTF8",), **surroundings)
    assert len([*place.glob("submissions/*latin*.json")]) == 1


@pytest.mark.slow
def test_a_notebooks_backend_and_settings_for_matplotlib(place, tmp_path):
    """What a notebook hands to `!python`, and settings that cannot be read, leave the figures as they are."""
    settings = tmp_path / "matplotlibrc"
    settings.write_bytes("# Größe\nfont.size: 40\n".encode("latin-1"))
    start(place, "prepare.py")
    picture = place / "runs/tiny/audit/audit.png"
    plain = picture.read_bytes()
    picture.unlink()
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": str(settings)}
    start(place, "prepare.py", MPLCONFIGDIR="/proc/nowhere", **notebook)
    assert picture.read_bytes() == plain


def test_inside_a_notebook_its_backend_stays(monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.delenv("MATPLOTLIBRC", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(sys, "argv", ["train_fold.py"])
    with pytest.raises(SystemExit):
        cli.entry(cli.Parser("a test"), lambda arguments: 0)
    assert "inline" in os.environ["MPLBACKEND"] and "MATPLOTLIBRC" not in os.environ


NAMELESS = ("unshare", "--user", "--map-user=12345", "--map-group=12345")
nameless = pytest.mark.skipif(
    not shutil.which("unshare") or bool(subprocess.run([*NAMELESS, "true"], capture_output=True).returncode),
    reason="needs unshare and user namespaces, to be a user without a name",
)


@nameless
@pytest.mark.slow
def test_a_user_without_a_name_or_a_home(place):
    """As `docker run --user 12345` makes one."""
    gone = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME")
    for command in (("train_fold.py", "--fold", "0"), ("ensemble.py", "--folds", "0"), ("prepare.py",)):
        start(place, *command, around=NAMELESS, without=gone)
    look = "from comp.kaggle import credentials; print(credentials.find_credentials())"
    bare = {name: value for name, value in os.environ.items() if name not in gone and not name.startswith("KAGGLE")}
    done = subprocess.run([*NAMELESS, sys.executable, "-c", look], cwd=place, env=bare, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("left", [{"LOCAL_RANK": "0"}, {"LOCAL_RANK": "", "RANK": "3", "SLURM_PROCID": "3"}])
def test_what_other_launchers_left_in_the_environment_starts_no_job(left, trained, tmp_path, monkeypatch, capsys):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    output = inside(monkeypatch, capsys, "train_fold.py", *TINY, "--fold", "0", cwd=trained[0])
    assert "fold 0 is finished" in output
    blend = ("ensemble.py", *TINY, "--folds", "0", "--tta", "none", "--submissions", str(tmp_path))
    assert "there is no sample submission" in inside(monkeypatch, capsys, *blend, cwd=trained[0])


def test_a_job_that_cannot_be_joined_is_one_line(monkeypatch):
    for name in distributed.LAUNCHED:
        monkeypatch.setenv(name, "0")
    assert distributed.local_rank() == 0
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(Refused, match=r"no job to join as RANK, LOCAL_RANK, .* say; unset them, or start torchrun: "):
        distributed.join()
    monkeypatch.setenv("LOCAL_RANK", "left")
    assert distributed.local_rank() is None
