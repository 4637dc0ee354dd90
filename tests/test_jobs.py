"""The road again, with two words more: in the sandbox, and on a Kaggle of our own with the real client."""

import csv
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import COMPETITION, ROOT, TINY, draw, inside, lay_out, load
from kaggle_server import KEY, TOKEN, Competition, Kaggle
from PIL import Image

from comp import config, files
from comp.config import Model
from comp.data import arrays
from comp.errors import Refused
from comp.kaggle import client, jobs, packing, sandbox
from comp.submission.runlength import encode_runs
from comp.train import runs

pytestmark = pytest.mark.slow

ON_KAGGLE = 'kaggle = "tiny-on-kaggle"\n' + COMPETITION
needs_namespaces = pytest.mark.skipif(
    bool(sandbox.find_unshare()[1]), reason=f"namespaces: {sandbox.find_unshare()[1]}"
)


def weights(place, fold):
    return safetensors.torch.load_file(place / f"runs/tiny/recipe/fold-{fold}/model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@needs_namespaces
def test_the_sandbox_gives_what_here_gives(trained, tmp_path, monkeypatch, capsys):
    here, _ = trained
    lay_out(tmp_path)
    words = (*TINY, "--on", "sandbox", "--fold", "0,1")
    output = inside(monkeypatch, capsys, "train_fold.py", *words, cwd=tmp_path)
    assert "Kaggle would keep" in output
    assert all(same(weights(here, fold), weights(tmp_path, fold)) for fold in (0, 1))
    assert "is finished" in inside(monkeypatch, capsys, "train_fold.py", *words, cwd=tmp_path)


@needs_namespaces
def test_a_kernel_trains_two_folds_at_a_time(trained, tmp_path, capfd):
    here, _ = trained
    lay_out(tmp_path)
    (tmp_path / "working").mkdir()
    words = ["--competition", str(tmp_path / "tiny.toml"), "--recipe", str(tmp_path / "recipe.toml")]
    script = packing.pack(ROOT / "kernels/train_fold.py", [*words, "--fold", "0,1", "--device", "cpu,cpu"])
    assert sandbox.run_script(script, {"datasets/tiny": tmp_path / "input"}, tmp_path / "working") == 0
    output = capfd.readouterr().out
    assert "2 folds at a time, on cpu, cpu" in output and "fold 1 | epoch   2/2" in output
    for fold in (0, 1):
        assert same(weights(here, fold), weights(tmp_path / "working", fold))


def test_a_kernel_takes_two_folds_and_of_a_pair_only_what_is_not_here(tmp_path, monkeypatch):
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    entry = load("train_fold.py")

    def asked(fold):
        words = [*TINY, "--fold", fold, "--on", "kaggle"]
        monkeypatch.setattr(sys, "argv", ["train_fold.py", *words])
        parser = entry.arguments()
        parser.add_argument("--on")
        return [(job.name, job.arguments[-1], len(job.leaves)) for job in entry.jobs(parser.parse_args(words))]

    pair = ("tiny-recipe-fold-0-1", "0,1", 2)
    assert asked("all") == [pair, ("tiny-recipe-fold-2", "2", 1)]
    assert asked("full") == [("tiny-recipe-full", "full", 1)]
    for name in ("model.safetensors", "oof.npz", "metrics.json"):
        files.write_text(tmp_path / "runs/tiny/recipe/fold-0" / name, "")
    assert asked("0,1") == [("tiny-recipe-fold-1", "1", 1)]


def test_recipes_are_compared_in_one_kernel_that_leaves_what_here_leaves(tmp_path, monkeypatch, capsys):
    lay_out(tmp_path)
    words = (*TINY, "--vary", "optimizer.lr", "1e-3", "2e-3", "--set", "epochs=1")
    inside(monkeypatch, capsys, "compare.py", *words, cwd=tmp_path)
    # All that the kernel is to bring is here, so that there is nothing to do.
    assert "is finished" in inside(monkeypatch, capsys, "compare.py", *words, "--on", "sandbox", cwd=tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare.py", *words, "--fold", "0,1", "--workers", "1", "--on", "sandbox"])
    compare = load("compare.py")
    (job,) = compare.jobs(compare.arguments().parse_args([*words, "--fold", "0,1"]))
    left = [str(leaf.relative_to("runs/tiny")) for leaf in job.leaves]
    assert left[:2] == ["recipe-lr-1e_3/fold-0/metrics.json", "recipe-lr-1e_3/fold-1/metrics.json"]
    assert job.arguments[-2:] == ["--fold", "0,1"] and slug_fits(job) and len(left) == 5


def slug_fits(job):
    return 6 <= len(jobs.make_slug(job.name)) <= 50


def test_each_competition_has_a_sample_submission_of_its_own(tmp_path, monkeypatch):
    tiny, mars = (config.Competition(name=name, classes=("a", "b")) for name in ("tiny", "mars"))
    (tmp_path / "tiny-sample_submission.csv").write_text("id\n")
    monkeypatch.setattr(files, "KAGGLE_INPUT", tmp_path / "kaggle")
    assert arrays.find_sample_submission(tiny, tmp_path) == tmp_path / "tiny-sample_submission.csv"
    assert arrays.find_sample_submission(mars, tmp_path) is None
    there = tmp_path / "kaggle/competitions/mars/sample_submission.csv"  # as a kernel finds it
    there.parent.mkdir(parents=True)
    there.write_text("id\n")
    assert arrays.find_sample_submission(mars, tmp_path) == there


@pytest.mark.parametrize("on", ["sandbox", "kaggle"])
def test_prepare_says_where_it_runs(tmp_path, monkeypatch, capsys, on):
    line = inside(monkeypatch, capsys, "prepare.py", "--source", "x", "--on", on, cwd=tmp_path, status=2)
    assert "folders of this machine" in line and not list(tmp_path.iterdir())


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A Kaggle that runs what is pushed in the sandbox, and planted credentials that must stay where they are."""
    truth = draw(7, 1)[1]

    def run(text, request, inputs):
        working, log = Path(tempfile.mkdtemp()), []
        status = sandbox.run_script(text, inputs, working, say=log.append)
        return ("ERROR" if status else "COMPLETE"), working, "".join(log)

    def score(file, competition):
        frame = pd.read_csv(file, keep_default_na=False)
        if len(frame) != 2 * len(truth):
            raise ValueError("Submission must have 14 rows")
        return 0.5, None

    with Kaggle(tmp_path / "server", run=run, score=score) as server:
        for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
            monkeypatch.delenv(name)
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "home"))
        (tmp_path / ".env").write_text(f"KAGGLE_KEY={KEY}\n")
        (tmp_path / "data").mkdir()
        server.competitions = {name: Competition(tmp_path / "data") for name in ("tiny-on-kaggle", "tiny-code")}
        sleep = time.sleep  # so that no test waits for the time between two polls
        monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.05)))
        client.log_in.cache_clear()
        yield server
        client.log_in.cache_clear()


def on_kaggle(monkeypatch, script, *arguments):
    """What `--on kaggle` does."""
    monkeypatch.setattr(sys, "argv", [script, *TINY, *arguments, "--on", "kaggle"])
    entry = load(script)
    parser = entry.arguments()
    parser.add_argument("--on")
    jobs.run_on_kaggle(entry.jobs(parser.parse_args()))


@needs_namespaces
def test_five_words_from_arrays_to_a_score(tmp_path, kaggle, monkeypatch, capsys):
    place = tmp_path / "place"
    lay_out(place, competition=ON_KAGGLE)
    shutil.copy(place / "input/tiny.npz", tmp_path / "data/tiny.npz")
    monkeypatch.chdir(place)

    on_kaggle(monkeypatch, "train_fold.py", "--fold", "0,1")
    for fold in (0, 1):
        folder = place / f"runs/tiny/recipe/fold-{fold}"
        kernel = json.loads((folder / "kernel.json").read_text())
        assert kernel["version"] == 1 and kernel["image"] == kaggle.image
        assert (folder / "model.safetensors").exists() and (folder / "curves.png").exists()
    assert [len(versions) for versions in kaggle.kernels.values()] == [1]  # which has two GPUs
    on_kaggle(monkeypatch, "train_fold.py", "--fold", "0,1")
    on_kaggle(monkeypatch, "ensemble.py", "--folds", "0,1")
    assert not kaggle.datasets  # the folds' kernels are the ensemble's inputs
    inside(monkeypatch, capsys, "ensemble.py", *TINY, "--folds", "0,1", "--submissions", "here", cwd=place)
    (made,), (ours,) = (place / "submissions").glob("tiny-recipe-*.csv"), (place / "here").glob("*.csv")
    before = made.read_bytes()
    assert ours.name == made.name and ours.read_bytes() == before
    # As if the user had been away when it ended: it is picked up, not run again.
    made.unlink()
    on_kaggle(monkeypatch, "ensemble.py", "--folds", "0,1")
    assert made.read_bytes() == before and [len(versions) for versions in kaggle.kernels.values()] == [1, 1]

    submit = load("submit.py")
    code = ON_KAGGLE.replace("tiny-on-kaggle", "tiny-code").replace("classes", "code_competition = true\nclasses", 1)
    (place / "code.toml").write_text(code)
    for toml, call in (("tiny.toml", "CreateSubmission"), ("code.toml", "CreateCodeSubmission")):
        arguments = submit.arguments().parse_args([str(made), "--competition", toml])
        assert submit.main(arguments) == 0 and kaggle.count(call) == 1
        with pytest.raises(Refused, match="was submitted on"):
            submit.main(arguments)
    with open(place / "submissions/ledger.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["competition"] for row in rows] == ["tiny-on-kaggle", "tiny-code"]
    assert all((row["public"], row["status"], row["file"]) == ("0.5", "COMPLETE", made.name) for row in rows)
    assert "public" in capsys.readouterr().out

    planted = (KEY, TOKEN)
    for version in (version for versions in kaggle.kernels.values() for version in versions):
        assert not any(secret in json.dumps(version.request) for secret in planted)
    for path in (path for path in place.rglob("*") if path.is_file()):
        assert not any(secret.encode() in path.read_bytes() for secret in planted), path


def save_images(data, folder, images, name=""):
    (data / folder).mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image).save(data / folder / f"{name}{k}.png")


def by_folders(data, images, masks):
    """Masks in files; nothing in the TOML but what ids are."""
    save_images(data, "images", images)
    save_images(data, "masks", masks)
    return 'id = "{name}"'


def by_table(data, images, masks):
    """Masks as run-lengths, a row an image and class."""
    save_images(data, "images", images)
    texts = [encode_runs(masks == label) for label in (1, 2)]
    rows = [(f"{k}.png", label + 1, texts[label][k]) for k in range(len(masks)) for label in (0, 1)]
    pd.DataFrame(rows, columns=["image", "class", "runs"]).to_csv(data / "train.csv", index=False)
    return """
images = "images/{id}.png"
test = "test_images/{id}.png"
id = "{name}"
table = { file = "train.csv", id = "image", class = "class", runs = "runs" }
"""


def by_reader(data, images, masks):
    """Arrays that only a reader of one's own can read."""
    np.savez(data / "scans.npz", images=images, masks=masks)
    return 'reader = "own.py"'


READER = """
import numpy as np
from PIL import Image

def read_samples(folder, part):
    if part == "train":
        with np.load(folder / "scans.npz") as scans:
            for k, (image, mask) in enumerate(zip(scans["images"], scans["masks"])):
                yield f"{k}.png", image, mask, None
    else:
        for path in sorted((folder / "test_images").glob("*.png")):
            yield path.name, np.asarray(Image.open(path)), None, None
"""


@needs_namespaces
@pytest.mark.parametrize("lay", [by_folders, by_table, by_reader])
def test_a_code_competition_from_its_download_to_a_score(tmp_path, kaggle, monkeypatch, capsys, lay):
    place, data = tmp_path / "place", tmp_path / "data"
    source = lay(data, *draw(24, 0))
    save_images(data, "test_images", draw(7, 1)[0], "seen-")
    code = (
        'kaggle = "tiny-code"\ncode_competition = true\n' + COMPETITION + "[source]\nsize = [32, 48]\n" + source + "\n"
    )
    lay_out(place, competition=code)
    (place / "own.py").write_text(READER)
    output = inside(monkeypatch, capsys, "train_fold.py", *TINY, "--fold", "0", cwd=place, status=2)
    assert "could not read the hidden test images" in output and not (place / "runs/tiny/recipe/fold-0").exists()
    (place / "input/tiny.npz").unlink()
    inside(monkeypatch, capsys, "prepare.py", "--competition", "tiny.toml", cwd=place)
    assert kaggle.count("DownloadDataFiles") == 1 and (place / "input/tiny-code/test_images/seen-0.png").exists()
    with np.load(place / "input/tiny.npz") as made:
        assert np.array_equal(made["train_masks"], draw(24, 0)[1])
    inside(monkeypatch, capsys, "train_fold.py", *TINY, "--fold", "0", cwd=place)
    on_kaggle(monkeypatch, "ensemble.py", "--folds", "0")

    def ids(file):
        return set(pd.read_csv(file)["id"])

    (made,) = (place / "submissions").glob("*.csv")
    assert ids(made) == {f"seen-{k}.png" for k in range(7)}
    shutil.rmtree(data / "test_images")
    save_images(data, "test_images", draw(3, 2)[0], "hidden-")
    ((version,),) = kaggle.kernels.values()
    (tmp_path / "rerun").mkdir()
    assert not sandbox.run_script(version.request["text"], kaggle._inputs(version.request), tmp_path / "rerun")
    assert ids(tmp_path / "rerun/submission.csv") == {f"hidden-{k}.png" for k in range(3)}

    submit = load("submit.py")
    assert submit.main(submit.arguments().parse_args([str(made), "--competition", "tiny.toml"])) == 0
    assert kaggle.count("CreateCodeSubmission") == 1


@needs_namespaces
def test_a_hubs_weights_travel_and_a_kernel_without_a_network_trains_from_them(tmp_path, monkeypatch, capsys, kaggle):
    import huggingface_hub
    import timm

    commit = "0123456789abcdef" * 2
    cached = tmp_path / f"cache/snapshots/{commit}/model.safetensors"  # as fetched: tests/test_hub.py
    cached.parent.mkdir(parents=True)
    safetensors.torch.save_file(timm.create_model("resnet10t").state_dict(), cached)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(cached))
    lay_out(tmp_path, competition=ON_KAGGLE)
    hub = ("--set", "model.encoder=tu-resnet10t", "--set", "model.encoder_weights=imagenet")
    words = (*TINY, *hub, "--fold", "0", "--time-budget", "10m", "--on", "kaggle")
    shown, write = [], jobs.pages.write_run_page

    def show(run, live=None):
        shown.append(live)
        return write(run, live)

    monkeypatch.setattr(jobs.pages, "write_run_page", show)
    inside(monkeypatch, capsys, "train_fold.py", *words, cwd=tmp_path)
    facts = json.loads((tmp_path / "runs/tiny/recipe/fold-0/metrics.json").read_text())
    # What the log told of epochs was shown while it trained; of what came back the page is whole.
    live = [one for one in shown if one]
    assert live[0].heading == "On Kaggle: tiny-recipe-fold-0" and "epoch   1/2" in live[0].text
    assert shown[-1] is None and 'http-equiv="refresh"' not in (tmp_path / "runs/tiny/recipe/report.html").read_text()
    assert facts["weights"].startswith("timm/resnet10t.c3_in1k@01234567, sha256 ")
    assert "licence apache-2.0" in facts["weights"] and "from scratch" not in facts["weights"]
    pushed = next(body for call, body in kaggle.calls if call == "SaveKernel")
    assert pushed["sessionTimeoutSeconds"] == 1200 + 660
    name = f"timm--resnet10t.c3_in1k--{commit}--model.safetensors"
    sent = next(name for name in pushed["datasetDataSources"] if "weights" in name)
    assert sent.endswith(dataset_of({name: cached}))
    shutil.rmtree(tmp_path / "runs")  # the same weights are the same dataset
    uploads = kaggle.count("CreateDataset")
    inside(monkeypatch, capsys, "train_fold.py", *words, "--set", "epochs=1", cwd=tmp_path)
    assert kaggle.count("CreateDataset") == uploads and kaggle.count("SaveKernel") == 2


def test_a_notebook_lies_on_kaggle_as_a_draft_beside_what_it_reads(tmp_path, monkeypatch, capsys, kaggle):
    lay_out(tmp_path, competition=ON_KAGGLE)
    words = (*TINY, "--fold", "0", "--on", "notebook")
    assert "open it there, and run it" in inside(monkeypatch, capsys, "train_fold.py", *words, cwd=tmp_path)
    ((version,),) = kaggle.kernels.values()
    sent = version.request
    archive, own = (cell["source"] for cell in json.loads(sent["text"])["cells"])
    assert "ARCHIVE = " in archive and "'--fold'" in own and "run(ARCHIVE, 'train_fold.py', ARGUMENTS)" in own
    assert sent["kernelType"] == "notebook" and sent["isPrivate"] and version.files is None
    assert sent["competitionDataSources"] == ["tiny-on-kaggle"] and [*kaggle.datasets] == sent["datasetDataSources"]
    assert "not pushed again" in inside(monkeypatch, capsys, "train_fold.py", *words, cwd=tmp_path)
    assert kaggle.count("SaveKernel") == 1


def test_folds_of_two_images_are_told_of(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained[0] / "runs", tmp_path / "runs")
    entry, settings = load("ensemble.py"), config.load_config("demo", overrides=["competition.name=tiny"])
    words = ["--run", "recipe", "--runs", str(tmp_path / "runs")]
    for images in (("one", "one"), ("one", "two")):
        for fold, image in enumerate(images):
            about = {"ref": "me/tiny", "version": 1, "image": f"python@{image}"}
            files.write_json(tmp_path / f"runs/tiny/recipe/fold-{fold}/kernel.json", about)
        entry.find(entry.arguments().parse_args(words), settings)
    said = "folds were trained in several of Kaggle's images, whose libraries differ: python@one, python@two\n"
    assert capsys.readouterr().out == said
    entry.find(entry.arguments().parse_args([*words, "--folds", "1,2"]), settings)
    assert capsys.readouterr().out == ""  # of the folds that are asked for there is one


# What follows needs no training: a script that leaves a list of what it finds stands in for the entry scripts.

ENTRY = """
import json, sys
from pathlib import Path

assert "fail" not in sys.argv, "as asked"
place = Path("runs/tiny/listed/fold-0")
place.mkdir(parents=True)
(place / "metrics.json").write_text("{}")
(place.parent / "config.json").write_text(sys.argv[1])
found = sorted(str(path.relative_to("/kaggle/input")) for path in Path("/kaggle/input").rglob("*") if path.is_file())
(place / "found.json").write_text(json.dumps(found))
assert "late" not in sys.argv, "as asked"
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Makes a job of the stand-in; its figures and page are left out."""
    place = tmp_path / "place"
    monkeypatch.setattr(jobs.pages, "write_run_page", lambda run: run / "report.html")

    def make(*arguments, competition=COMPETITION, overrides=(), **more):
        if not place.exists():
            lay_out(place, competition=competition)
        monkeypatch.chdir(place)
        (place / "entry.py").write_text(ENTRY)
        settings = config.load_config("tiny.toml", "recipe.toml", overrides)
        paths = {"entry": place / "entry.py", "input": place / "input", "runs": place / "runs"}
        about = {"name": "tiny-listed-fold-0", "models": [settings.model]}
        about |= {"competition": settings.competition, "leaves": [place / "runs/tiny/listed/fold-0/metrics.json"]}
        return jobs.Job(arguments=arguments or ("x",), **{**paths, **about, **more})

    return make


def found(job):
    return json.loads(job.leaves[0].with_name("found.json").read_text())


def dataset_of(contents):
    """How a dataset's name ends, of its files by their places."""
    listed = "".join(f"{place} {files.sha256(file)}\n" for place, file in contents.items())
    return hashlib.sha256(listed.encode()).hexdigest()[:6]


@needs_namespaces
def test_arrays_that_kaggle_lacks_travel_as_a_dataset_and_others_do_not(tmp_path, kaggle, job, capsys):
    arrays = job().input / "tiny.npz"
    jobs.run_on_kaggle([job()])  # no competition on Kaggle
    assert found(job()) == [f"datasets/tester/comp-tiny-arrays-{dataset_of({'tiny.npz': arrays})}/tiny.npz"]
    for words in ("1", "2"):  # the same arrays do not go up again; others are another dataset
        shutil.rmtree(job().runs / "tiny/listed")
        jobs.run_on_kaggle([job(words)])
        assert len(kaggle.datasets) == int(words)
        assert found(job()) == [f"datasets/tester/comp-tiny-arrays-{dataset_of({'tiny.npz': arrays})}/tiny.npz"]
        lay_out(tmp_path / words, train_groups=draw(24, 0)[1][:, 0, 0].astype(str))
        shutil.copy(tmp_path / words / "input/tiny.npz", arrays)


@needs_namespaces
def test_a_competitions_own_arrays_are_not_uploaded_but_prepared_ones_are(tmp_path, kaggle, job):
    (tmp_path / "data/sample_submission.csv").write_text("id\n")
    own = job(competition=ON_KAGGLE)
    jobs.run_on_kaggle([own])
    competition = "competitions/tiny-on-kaggle"
    dataset = f"datasets/tester/comp-tiny-arrays-{dataset_of({'tiny.npz': own.input / 'tiny.npz'})}"
    assert found(own) == [f"{competition}/sample_submission.csv", f"{dataset}/tiny.npz"]
    shutil.rmtree(own.runs)
    shutil.copy(own.input / "tiny.npz", tmp_path / "data")
    jobs.run_on_kaggle([own])
    assert found(own) == [f"{competition}/sample_submission.csv", f"{competition}/tiny.npz"]
    shutil.rmtree(own.runs)
    (tmp_path / "data/tiny.npz").write_bytes(b"another file of that name")
    with pytest.raises(Refused, match="not as large as the competition's own file of that name"):
        jobs.run_on_kaggle([own])


@needs_namespaces
def test_local_weights_travel(trained, tmp_path, kaggle, job):
    (tmp_path / "b3.safetensors").write_bytes(b"weights")
    words = [f"model.encoder_weights={tmp_path}/b3.safetensors"]
    jobs.run_in_sandbox([job(overrides=words)])
    assert found(job())[-1] == "datasets/me/tiny-weights/b3.safetensors"
    shutil.rmtree(job().runs)
    jobs.run_on_kaggle([job(overrides=words)])
    digest = dataset_of({"b3.safetensors": tmp_path / "b3.safetensors"})
    assert found(job())[-1] == f"datasets/tester/comp-tiny-weights-{digest}/b3.safetensors"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/b3.safetensors").write_bytes(b"others")
    with pytest.raises(Refused, match="files of one name would be one"):
        jobs.run_in_sandbox(
            [job(models=[Model(encoder_weights=f"{tmp_path}/{at}b3.safetensors") for at in ("", "other/")], leaves=())]
        )
    for name, line in (("imagenot", "resnet.* has no 'imagenot'"), ("nowhere.safetensors", "no such file")):
        with pytest.raises(Refused, match=f"model.encoder_weights.*{line}"):
            jobs.run_in_sandbox([job(overrides=[f"model.encoder_weights={name}"], leaves=())])


@needs_namespaces
def test_folds_trained_here_travel_as_a_dataset(trained, kaggle, job):
    folds = runs.find_folds(trained[0] / "runs/tiny/recipe")[:1]
    place = "runs/tiny/recipe/fold-0"
    names = [f"{place}/{name}" for name in ("metrics.json", "model.safetensors", "oof.npz")]
    jobs.run_in_sandbox([job(folds=folds)])
    assert found(job())[1:] == [f"datasets/me/tiny-listed-fold-0-folds/{name}" for name in names]
    shutil.rmtree(job().runs)
    jobs.run_on_kaggle([job(folds=folds)])
    digest = dataset_of({f"{place}/{file.name}": file for file in runs.fold_files(folds[0].folder)})
    assert found(job())[1:] == [f"datasets/tester/comp-tiny-listed-fold-0-folds-{digest}/{name}" for name in names]


@needs_namespaces
def test_a_model_of_all_images_travels_without_what_is_out_of_fold(trained, tmp_path, kaggle, job):
    full = tmp_path / "runs/tiny/recipe/full"
    shutil.copytree(trained[0] / "runs/tiny/recipe/fold-0", full, ignore=shutil.ignore_patterns("oof.npz"))
    jobs.run_on_kaggle([job(folds=[runs.read_fold(full)])])
    digest = dataset_of({f"runs/tiny/recipe/full/{file.name}": file for file in runs.fold_files(full)})
    place = f"datasets/tester/comp-tiny-listed-fold-0-folds-{digest}/runs/tiny/recipe/full"
    assert found(job())[1:] == [f"{place}/metrics.json", f"{place}/model.safetensors"]


@needs_namespaces
def test_more_kernels_than_kaggle_has_places_for(kaggle, job, capsys):
    kaggle.places, run = 1, kaggle.run

    def held(*given):
        while kaggle.count("SaveKernel") < 2:  # the first one runs until the second was refused
            time.sleep(0.01)
        return run(*given)

    kaggle.run = held
    jobs.run_on_kaggle([job(str(number), name=f"tiny-listed-{number}", leaves=()) for number in (0, 1)])
    assert [len(versions) for versions in kaggle.kernels.values()] == [1, 1]
    assert "tiny-listed-1: waits until Kaggle has a place for it" in capsys.readouterr().out


def test_a_page_that_shows_a_log_does_not_outlive_the_following(job, monkeypatch):
    own = job()
    page = own.runs / "tiny/listed/report.html"

    def write(run, live=None):
        if not live:
            raise Refused("no finished fold")
        files.write_text(page, live.text)

    def follow(kernel, say):
        say("epoch   1/2  of a kernel that goes on there")
        assert "of a kernel that goes on there" in page.read_text()
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.pages, "write_run_page", write)
    monkeypatch.setattr(jobs.api, "username", lambda: "me")
    monkeypatch.setattr(jobs.api, "push_kernel", lambda *_, **__: jobs.api.Kernel("me/tiny", 1))
    monkeypatch.setattr(jobs.api, "follow_kernel", follow)
    monkeypatch.setattr(jobs, "_make_kernel", lambda job: ("", {}))
    with pytest.raises(KeyboardInterrupt):
        jobs.run_on_kaggle([own])
    assert not page.exists()


@needs_namespaces
def test_a_kernel_that_fails_leaves_nothing_here_and_keeps_no_other_from_coming(kaggle, job, capsys):
    bad, good = job("fail", name="tiny-listed-bad", leaves=[job().runs / "tiny/bad/fold-0/metrics.json"]), job()
    with pytest.raises(Refused, match="tiny-listed-bad: ended on Kaggle as ERROR"):
        jobs.run_on_kaggle([bad, good])
    assert "AssertionError: as asked" in capsys.readouterr().out
    assert found(good) and not (good.runs / "tiny/bad").exists()


@needs_namespaces
@pytest.mark.parametrize("where", [jobs.run_in_sandbox, jobs.run_on_kaggle])
def test_what_a_failed_kernel_had_finished_comes_here(kaggle, job, where):
    failed = job("late")
    lacking = failed.runs / "tiny/lacking/fold-0"
    lacking.mkdir(parents=True)
    with pytest.raises(Refused, match=r"ended on Kaggle as ERROR|ended with status 1"):
        where([dataclasses.replace(failed, leaves=[*failed.leaves, lacking / "metrics.json"])])
    assert found(failed) and not list(lacking.iterdir())


@needs_namespaces
def test_what_fails_in_the_sandbox_is_one_line_here(job):
    with pytest.raises(Refused, match="tiny-listed-fold-0: the script ended with status 1 in the sandbox"):
        jobs.run_in_sandbox([job("fail")])
    assert not job().runs.exists()


@needs_namespaces
def test_what_is_here_of_the_run_stays(job):
    listed = job().runs / "tiny/listed"
    (listed / "fold-0").mkdir(parents=True)
    (listed / "config.json").write_text("of a start that trained nothing")
    (listed / "fold-0/found.json").write_text("of an interrupted run")
    jobs.run_in_sandbox([job("there")])
    assert (listed / "config.json").read_text() == "there" and found(job())
    (listed / "config.json").write_text("here")
    (listed / "fold-0/metrics.json").rename(listed / "fold-0/model.safetensors")
    jobs.run_in_sandbox([job("there")])
    assert (listed / "config.json").read_text() == "here"


def test_no_credentials_is_one_line(tmp_path, monkeypatch, capsys):
    lay_out(tmp_path, competition=ON_KAGGLE)
    for name in {name for name in os.environ if name.startswith("KAGGLE_")} - {"KAGGLE_API_ENVIRONMENT"}:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    client.log_in.cache_clear()
    words = (*TINY, "--fold", "0", "--on", "kaggle")
    output = inside(monkeypatch, capsys, "train_fold.py", *words, cwd=tmp_path, status=2)
    assert len(output.strip().splitlines()) == 1 and "no Kaggle credentials" in output


def test_the_real_pack_is_small_and_the_same_each_time():
    one = packing.pack(ROOT / "kernels/train_fold.py", ["--fold", "0"])
    assert one == packing.pack(ROOT / "kernels/train_fold.py", ["--fold", "0"])
    assert len(one.encode()) < 400_000


@needs_namespaces
@pytest.mark.skipif("COMP_SECOND_IMAGE" not in os.environ, reason="COMP_SECOND_IMAGE=1 lets uv fetch its 4 GB")
def test_the_sandbox_rehearses_on_a_newer_image_too(tmp_path):
    """Python 3.13 and torch 2.11, in an environment that uv makes beside the one of the tests."""
    uv, python = shutil.which("uv") or pytest.skip("needs uv"), tmp_path / "image/bin/python"
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = ["torch==2.11.*", *(need for need in about if not need.startswith("torch>"))]
    for command in (["venv", "--quiet", "--python", "3.13", "image"], ["pip", "install", "--python", python, *wanted]):
        made = subprocess.run([uv, "--no-config", *command], cwd=tmp_path, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"needs Python 3.13 and torch 2.11, which uv cannot bring: {made.stderr.strip()[-200:]}")
    lay_out(tmp_path / "place")
    said = "import sys, torch; print('in', sys.version_info[:2], torch.__version__, flush=True)\n"
    rehearse = "import sys; from comp import cli; from comp.kaggle import packing; pack = packing.pack\n"
    rehearse += f"packing.pack = lambda *given: {said!r} + pack(*given)\n"
    rehearse += f"import runpy; sys.argv[0] = {str(ROOT / 'kernels/train_fold.py')!r}\n"
    rehearse += "runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [python, "-c", rehearse, *TINY, "--fold", "0", "--on", "sandbox"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(words, cwd=tmp_path / "place", env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "in (3, 13) 2.11" in ended.stdout
    assert (tmp_path / "place/runs/tiny/recipe/fold-0/metrics.json").exists()
