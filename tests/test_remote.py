"""The real client against a server on loopback: what arrives there once, and what is said when it does not."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from kaggle_server import KEY, TOKEN, USER, Competition, Kaggle

from comp import client, credentials, remote
from comp.errors import Refused

POLL = 0.01
LINES = "one\ntwo\nthree"


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory):
    """One server and one client process for all tests, since the client takes seconds to start."""
    folder = tmp_path_factory.mktemp("kaggle")
    with Kaggle(folder, run=_run, score=_score) as server, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("KAGGLE_")] + ["XDG_CONFIG_HOME", "VERBOSE"]:
            patch.delenv(name, raising=False)
        for name, value in server.environment(folder / "home").items():
            patch.setenv(name, value)
        data = folder / "data"
        data.mkdir()
        (data / "train.npz").write_bytes(b"arrays")
        server.competitions = {"mars": Competition(data), "venus": Competition(data, joined=False)}
        yield server
        client._PROCESS.stop()


@pytest.fixture(autouse=True)
def calm(kaggle):
    """Each test begins without faults, kernels or submissions of the test before."""
    kaggle.faults.clear()
    kaggle.calls.clear()
    kaggle.kernels.clear()
    kaggle.datasets.clear()
    kaggle.submissions.clear()
    kaggle.token, kaggle.expired, kaggle.dataset_fails = TOKEN, False, False
    kaggle.places, kaggle.page, kaggle.looks_until_ready, kaggle.looks_until_scored = 2, 20, 1, 1
    _run.files, _run.status, _run.hold = {"submission.csv": "id,v\n"}, "COMPLETE", None


def _run(text, request, inputs):
    if _run.hold:
        _run.hold.wait(10)
    folder = Path(os.environ["HOME"]) / "output" / str(time.monotonic_ns())
    for name, content in _run.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return _run.status, folder, LINES


def _score(file, competition):
    if not file.read_text().startswith("id,"):
        raise ValueError("Submission must have columns id, v")
    return 0.61, None


def _folder(tmp_path, slug="mars-fold-0", text="print(1)\n", **sources):
    folder = tmp_path / "pack"
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(text)
    remote.kernel_metadata(folder, f"{USER}/{slug}", "script.py", **sources)
    return folder


def _complete(kaggle, ref):
    while kaggle.latest(ref).status not in ("COMPLETE", "ERROR"):
        time.sleep(0.01)


def _pushed(kaggle, tmp_path, **more):
    kernel = remote.push(_folder(tmp_path, **more), POLL)
    _complete(kaggle, kernel.ref)
    return kernel


# Credentials


def test_user_with_a_token_which_is_in_no_argument(kaggle):
    assert remote.user(POLL) == USER
    assert TOKEN not in " ".join(client._PROCESS.process.args)


def test_user_with_name_and_key_in_kaggle_json(kaggle, tmp_path, monkeypatch):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    (tmp_path / "kaggle.json").write_text(json.dumps({"username": USER, "key": KEY}))
    assert remote.user(POLL) == USER
    assert remote.upload(_weights(tmp_path), "fold-weights", poll=POLL) == f"{USER}/fold-weights"
    kaggle.plant("GetKernelSessionStatus", status=400, message=f"{KEY} is odd")
    with pytest.raises(Refused, match=r"HTTP 400: \*\*\* is odd"):
        remote.status(f"{USER}/mars-fold-0", POLL)
    kaggle.expired = True
    with pytest.raises(Refused, match=r"does not accept your credentials.*settings/api"):
        remote.status(f"{USER}/mars-fold-0", POLL)


def test_no_credentials(kaggle, monkeypatch):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    with pytest.raises(Refused, match=r"no Kaggle credentials: .*settings/api"):
        remote.user(POLL)


def test_a_token_that_expires_and_is_renewed_while_a_kernel_runs(kaggle, tmp_path, monkeypatch):
    file, renewed = tmp_path / "token", TOKEN[::-1]
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(file))
    file.write_text(TOKEN)
    kernel = _pushed(kaggle, tmp_path)
    kaggle.token = renewed
    with pytest.raises(Refused, match="expired") as refused:
        remote.follow(kernel.ref, POLL)
    assert TOKEN not in str(refused.value)
    file.write_text(renewed)
    assert remote.status(kernel.ref, POLL) == "COMPLETE"
    kaggle.token = TOKEN
    file.write_text(TOKEN)  # before anyone was told: the client logs in anew by itself
    assert remote.follow(kernel.ref, POLL, say=lambda line: None) == "COMPLETE"


def test_credentials_are_struck_out_of_what_is_said(kaggle, tmp_path, monkeypatch):
    kaggle.plant("GetKernelSessionStatus", status=400, message=f"Bearer {TOKEN} is odd")
    with pytest.raises(Refused, match=r"HTTP 400: Bearer \*\*\* is odd"):
        remote.status(f"{USER}/mars-fold-0", POLL)
    said = "GET https://me:secret@proxy/ https://storage/x?signature=abc&id=1 (url: /y?token=z)"
    assert credentials.strike(said) == "GET https://***@proxy/ https://storage/x?*** (url: /y?***)"
    monkeypatch.setenv("VERBOSE", "1")  # which lets the client print its authorization header
    assert "VERBOSE" not in client.environment()


@pytest.mark.parametrize("text", [f"token = {TOKEN!r}", f'{{"key": "{KEY}"}}', 'x = "KGAT_aaaaaaaaaaaaaaaaaaaa"'])
def test_credentials_in_a_kernel_or_dataset_stay_here(kaggle, tmp_path, text):
    with pytest.raises(Refused, match=r"script\.py: holds a Kaggle key or token"):
        _folder(tmp_path, text=text)
    with pytest.raises(Refused, match=r"script\.py: holds a Kaggle key or token"):
        remote.upload(tmp_path / "pack", "fold-weights", poll=POLL)
    assert not (tmp_path / "pack" / "kernel-metadata.json").exists()


def test_a_file_of_credentials_stays_here(tmp_path):
    (tmp_path / ".env").write_text("A=b")
    with pytest.raises(Refused, match=r"\.env: by its name it keeps credentials"):
        remote.upload(tmp_path, "fold-weights", poll=POLL)


# Pushing


def test_every_field_is_set_on_purpose(kaggle, tmp_path):
    kernel = remote.push(_folder(tmp_path, competitions=["mars"]), POLL)
    assert kernel == remote.Kernel(f"{USER}/mars-fold-0", 1, f"https://www.kaggle.com/code/{USER}/mars-fold-0")
    sent = next(body for call, body in kaggle.calls if call == "SaveKernel")
    assert sent["isPrivate"] is True and sent["enableInternet"] is False and sent["enableGpu"] is True
    assert sent["machineShape"] == "NvidiaTeslaT4" and sent["competitionDataSources"] == ["mars"]
    assert sent["newTitle"] == "mars fold 0" and sent["text"] == "print(1)\n" and sent["kernelType"] == "script"


@pytest.mark.parametrize(
    ("slug", "more", "line"),
    [
        ("abc", {}, "kernel slug 'abc': 5 to 50"),
        ("Mars_fold", {}, "kernel slug 'Mars_fold'"),
        ("mars-fold-0", {"title": "My best"}, "kernel title 'My best' makes another slug.*try 'mars fold 0'"),
        ("mars-fold-0", {"text": "#" * 1_000_000}, r"script\.py: 1,000,000 bytes; Kaggle takes fewer than 1,000,000"),
    ],
)
def test_what_kaggle_would_not_take_is_refused_before_it_is_sent(kaggle, tmp_path, slug, more, line):
    with pytest.raises(Refused, match=line):
        _folder(tmp_path, slug, **more)
    assert not (tmp_path / "pack" / "kernel-metadata.json").exists()


def test_the_same_source_is_pushed_once_and_a_changed_one_again(kaggle, tmp_path):
    kernel, said = _pushed(kaggle, tmp_path), []
    assert remote.push(_folder(tmp_path), POLL, said.append) == kernel
    assert "not pushed again" in said[0]
    assert remote.push(_folder(tmp_path, text="print(2)\n"), POLL).version == 2
    assert kaggle.count("SaveKernel") == 2


def test_a_failed_run_is_pushed_again(kaggle, tmp_path):
    _run.status = "ERROR"
    _pushed(kaggle, tmp_path)
    assert remote.push(_folder(tmp_path), POLL).version == 2


def test_a_notebook_is_known_again_however_its_lines_are_kept(kaggle, tmp_path):
    cell = {"cell_type": "code", "source": ["a = 1\n", "b = 2"], "outputs": [{"text": "x"}], "metadata": {}}
    (tmp_path / "job.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4}))
    remote.kernel_metadata(tmp_path, f"{USER}/mars-notebook", "job.ipynb")
    kernel = remote.push(tmp_path, POLL)
    _complete(kaggle, kernel.ref)
    assert remote.push(tmp_path, POLL) == kernel
    assert kaggle.count("SaveKernel") == 1


@pytest.mark.parametrize("status", [500, 503, 0])
def test_a_push_whose_answer_got_lost_is_not_repeated(kaggle, tmp_path, status):
    kaggle.plant("SaveKernel", status=status, late=True)
    assert remote.push(_folder(tmp_path), POLL).version == 1
    assert kaggle.count("SaveKernel") == 1


def test_a_lost_answer_to_a_source_that_had_failed_before(kaggle, tmp_path):
    _run.status = "ERROR"
    _pushed(kaggle, tmp_path)
    kaggle.plant("SaveKernel", late=True)
    assert remote.push(_folder(tmp_path), POLL).version == 2
    assert kaggle.count("SaveKernel") == 2


@pytest.mark.parametrize("status", [429, 503, 0])
def test_a_push_that_did_not_arrive_is_repeated(kaggle, tmp_path, status):
    kaggle.plant("SaveKernel", status=status, times=2)
    assert remote.push(_folder(tmp_path), POLL).version == 1
    assert kaggle.count("SaveKernel") == 3


@pytest.mark.parametrize("status", [400, 403])
def test_a_push_that_is_declined_is_not_repeated(kaggle, tmp_path, status):
    kaggle.plant("SaveKernel", status=status, message="Not like this")
    with pytest.raises(Refused, match=f"HTTP {status}: Not like this"):
        remote.push(_folder(tmp_path), POLL)
    assert kaggle.count("SaveKernel") == 1


@pytest.mark.parametrize("kind", ["dataset", "competition", "kernel", "model"])
def test_a_refused_source_is_named_though_the_client_succeeds(kaggle, tmp_path, kind):
    name = {"competition": "pluto", "model": f"{USER}/net/pyTorch/big/1"}.get(kind, f"{USER}/no-such-thing")
    with pytest.raises(Refused, match=f"Kaggle has no {kind} {name} for you; version 1 runs without: stop it at http"):
        remote.push(_folder(tmp_path, **{f"{kind}s": [name]}), POLL)


def test_errors_that_come_with_http_200(kaggle, tmp_path):
    kaggle.plant("SaveKernel", answer={"error": "Maximum weekly GPU quota of 30.00 hours reached."})
    with pytest.raises(Refused, match="mars-fold-0: Kaggle refused the kernel: Maximum weekly GPU quota"):
        remote.push(_folder(tmp_path), POLL)
    kaggle.plant("SaveKernel", answer={"versionNumber": 0, "url": "https://www.kaggle.com/x"})
    with pytest.raises(Refused, match="started no run"):
        remote.push(_folder(tmp_path), POLL)


def test_a_push_waits_for_a_free_place(kaggle, tmp_path):
    _run.hold, kaggle.places = threading.Event(), 1
    first = remote.push(_folder(tmp_path), POLL)
    assert remote.status(first.ref, POLL) in remote.ACTIVE
    said = []
    threading.Timer(0.1, _run.hold.set).start()
    second = remote.push(_folder(tmp_path, "mars-fold-1"), POLL, said.append)
    assert second.version == 1 and len(said) == 1
    assert said[0] == f"{second.ref}: waits for a free place (Maximum batch GPU session count of 1 reached.)"
    _complete(kaggle, first.ref)
    assert remote.status(first.ref, POLL) == "COMPLETE"


# Following


def test_the_log_is_said_as_it_comes_and_once(kaggle, tmp_path):
    _run.hold, said = threading.Event(), []
    kernel = remote.push(_folder(tmp_path), POLL)
    kaggle.latest(kernel.ref).say("zero")

    def say(line):
        said.append((line, kaggle.latest(kernel.ref).status))
        if line == "zero":  # it came while the kernel ran: only then may the run end
            _run.hold.set()

    assert remote.follow(kernel.ref, POLL, say=say) == "COMPLETE"
    assert [line for line, _ in said] == ["zero", *LINES.split()]
    assert said[0][1] == "RUNNING"


def test_without_a_live_log_it_is_said_at_the_end(kaggle, tmp_path):
    said, kernel = [], _pushed(kaggle, tmp_path)
    assert remote.follow(kernel.ref, POLL, say=said.append) == "COMPLETE"
    assert said == LINES.split() == remote.log(kernel.ref, POLL)


def test_following_outlasts_429_5xx_and_lost_connections(kaggle, tmp_path):
    kernel = _pushed(kaggle, tmp_path)
    kaggle.plant("GetKernelSessionStatus", status=429, retry_after="7")
    with pytest.raises(client.Declined, match="asks for fewer calls") as declined:
        client.ask("kernels_status", kernel=kernel.ref)
    assert declined.value.pause == 7
    kaggle.plant("GetKernelSessionStatus", status=429, retry_after="0.02")
    kaggle.plant("GetKernelSessionStatus", status=503, times=2)
    kaggle.plant("GetKernelSessionStatus", status=0, times=2)
    assert remote.follow(kernel.ref, POLL, say=lambda line: None) == "COMPLETE"


def test_a_failed_kernel_says_its_log_and_then_one_line(kaggle, tmp_path):
    _run.status, said = "ERROR", []
    kernel = _pushed(kaggle, tmp_path)
    with pytest.raises(Refused, match=r"mars-fold-0: ended on Kaggle as ERROR: Your notebook was stopped.*its log"):
        remote.follow(kernel.ref, POLL, say=said.append)
    assert said == LINES.split()


def test_the_end_of_the_run_before_is_not_taken_for_this_one(kaggle, tmp_path):
    _run.hold = threading.Event()
    kernel = remote.push(_folder(tmp_path), POLL)
    kaggle.plant("GetKernelSessionStatus", status=404, message="No runs found for this kernel")
    kaggle.plant("GetKernelSessionStatus", answer={"status": "ERROR"}, times=3)
    threading.Timer(0.2, _run.hold.set).start()
    assert remote.follow(kernel.ref, POLL, fresh=30, say=lambda line: None) == "COMPLETE"


def test_ctrl_c_leaves_the_kernel_running(kaggle, tmp_path):
    _run.hold, said = threading.Event(), []
    kernel = remote.push(_folder(tmp_path), POLL)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        remote.follow(kernel.ref, POLL, say=said.append)
    assert said[-1] == f"{kernel.ref} keeps running on Kaggle; the same command picks it up again"
    assert remote.push(_folder(tmp_path), POLL, said.append) == kernel
    _run.hold.set()
    assert remote.follow(kernel.ref, POLL, say=said.append) == "COMPLETE"
    assert kaggle.count("SaveKernel") == 1


def test_a_kernel_that_is_not_there(kaggle):
    with pytest.raises(Refused, match="HTTP 403: Cannot access kernel 'tester/no-kernel'"):
        remote.follow(f"{USER}/no-kernel", POLL)


# Collecting


def _files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_all_pages_of_output_arrive(kaggle, tmp_path):
    kaggle.page = 2
    _run.files = {f"runs/mars/a/fold-0/{name}.txt": name for name in "abcde"} | {"submission.csv": "id\n"}
    kernel = _pushed(kaggle, tmp_path)
    paths = remote.collect(kernel.ref, tmp_path / "got", POLL)
    got = _files(tmp_path / "got")
    assert {str(path.relative_to(tmp_path / "got")) for path in paths} == set(got)
    assert got == _run.files | {"mars-fold-0.log": LINES + "\n"}
    (tmp_path / "got" / "mars-fold-0.log").write_text("of another run")
    assert remote.collect(kernel.ref, tmp_path / "got", POLL) == paths
    assert _files(tmp_path / "got") == got


@pytest.mark.parametrize("status", [404, 500])
def test_an_error_page_is_not_taken_for_a_file(kaggle, tmp_path, status):
    kernel = _pushed(kaggle, tmp_path)
    kaggle.plant("file", status=status)
    if status == 500:
        remote.collect(kernel.ref, tmp_path / "got", POLL)
        assert _files(tmp_path / "got")["submission.csv"] == "id,v\n"
    else:
        with pytest.raises(Refused, match="HTTP 404"):
            remote.collect(kernel.ref, tmp_path / "got", POLL)
        assert _files(tmp_path / "got") == {} and not list((tmp_path / "got").iterdir())


def test_nothing_moves_where_one_file_would_be_overwritten(kaggle, tmp_path):
    _run.files = {"a.txt": "new", "b.txt": "new"}
    kernel, folder = _pushed(kaggle, tmp_path), tmp_path / "got"
    folder.mkdir()
    (folder / "b.txt").write_text("mine")
    with pytest.raises(Refused, match=r"b\.txt: not what tester/mars-fold-0 brought"):
        remote.collect(kernel.ref, folder, POLL)
    assert _files(folder) == {"b.txt": "mine"}


# Datasets


def _weights(tmp_path):
    folder = tmp_path / "weights"
    (folder / "fold-0").mkdir(parents=True, exist_ok=True)
    (folder / "fold-0" / "model.safetensors").write_text("weights")
    (folder / "notes.txt").write_text("")
    return folder


def test_a_dataset_is_made_then_versioned_and_waited_for(kaggle, tmp_path):
    kaggle.looks_until_ready, folder, ref = 3, _weights(tmp_path), f"{USER}/fold-weights"
    assert remote.upload(folder, "fold-weights", poll=POLL) == ref
    assert kaggle.datasets[ref].request["isPrivate"] is True and not kaggle.datasets[ref].looks
    assert _files(kaggle.datasets[ref].versions[0]) == {"fold-0/model.safetensors": "weights", "notes.txt": ""}
    (folder / "notes.txt").write_text("second")
    assert remote.upload(folder, "fold-weights", poll=POLL) == ref
    assert not kaggle.datasets[ref].looks  # the version before was ready all the time
    assert _files(kaggle.datasets[ref].versions[1])["notes.txt"] == "second"
    assert set(_files(folder)) == {"fold-0/model.safetensors", "notes.txt"}
    remote.push(_folder(tmp_path, datasets=[ref]), POLL)


def test_a_dataset_that_stays_unready_or_fails(kaggle, tmp_path):
    kaggle.looks_until_ready = 1000
    with pytest.raises(Refused, match=r"fold-weights: still not ready \(blobs_received\); see http"):
        remote.upload(_weights(tmp_path), "fold-weights", poll=POLL, patience=0.05)
    kaggle.dataset_fails, kaggle.looks_until_ready = True, 1
    with pytest.raises(Refused, match=r"other-weights: Kaggle could not prepare it \(failed\)"):
        remote.upload(_weights(tmp_path), "other-weights", poll=POLL)


def test_a_dataset_that_misses_a_file_is_not_called_ready(kaggle, tmp_path):
    kaggle.plant("PUT", status=403)
    with pytest.raises(Refused, match=r"upload of .* failed, the dataset is incomplete: run the same command again"):
        remote.upload(_weights(tmp_path), "fold-weights", poll=POLL)


@pytest.mark.parametrize(
    ("call", "late"), [("CreateDataset", True), ("CreateDataset", False), ("StartBlobUpload", False)]
)
def test_an_upload_whose_answer_got_lost_is_made_once(kaggle, tmp_path, call, late):
    kaggle.plant(call, status=0, late=late)
    kaggle.plant("GetDatasetStatus", status=503)
    remote.upload(_weights(tmp_path), "fold-weights", poll=POLL)
    assert len(kaggle.datasets[f"{USER}/fold-weights"].versions) == 1


def test_what_no_dataset_can_be(kaggle, tmp_path):
    with pytest.raises(Refused, match="dataset slug 'abc': 3 characters; Kaggle takes 6 to 50"):
        remote.upload(_weights(tmp_path), "abc", poll=POLL)
    with pytest.raises(Refused, match="nothing to upload"):
        remote.upload(tmp_path / "none", "fold-weights", poll=POLL)
    kaggle.plant("CreateDataset", answer={"status": "error", "error": "The requested title is already in use"})
    with pytest.raises(Refused, match="Kaggle refused it: The requested title is already in use"):
        remote.upload(_weights(tmp_path), "fold-weights", poll=POLL)


# Submissions


def _csv(tmp_path, text="id,v\n1,2\n"):
    path = tmp_path / "mars.csv"
    path.write_text(text)
    return path


def test_a_file_is_submitted_and_scored(kaggle, tmp_path):
    kaggle.looks_until_scored = 3
    ref = remote.submit("mars", _csv(tmp_path), "run a 1", POLL)
    assert remote.wait_score("mars", ref, POLL) == remote.Score("COMPLETE", 0.61, None, "")
    assert kaggle.submissions[0]["_file"].read_text() == "id,v\n1,2\n"


def test_a_kernel_is_submitted(kaggle, tmp_path):
    kernel = _pushed(kaggle, tmp_path)
    ref = remote.submit("mars", kernel, "run a 1", POLL)
    assert remote.wait_score("mars", ref, POLL).public == 0.61
    with pytest.raises(Refused, match="HTTP 400: Could not find provided notebook version"):
        remote.submit("mars", remote.Kernel(kernel.ref, 7, kernel.url), "run a 2", POLL)
    with pytest.raises(Refused, match="does not say which version"):
        remote.submit("mars", remote.Kernel(kernel.ref, 0, kernel.url), "run a 3", POLL)
    assert len(kaggle.submissions) == 1


def test_what_is_wrong_with_a_submission_is_told(kaggle, tmp_path):
    ref = remote.submit("mars", _csv(tmp_path, "image\n"), "run a 1", POLL)
    assert remote.wait_score("mars", ref, POLL) == remote.Score("ERROR", error="Submission must have columns id, v")
    kaggle.looks_until_scored = 1000
    ref = remote.submit("mars", _csv(tmp_path), "run a 2", POLL)
    assert remote.wait_score("mars", ref, POLL, patience=0.05) == remote.Score("PENDING")


@pytest.mark.parametrize("competition", ["venus", "pluto"])
def test_a_competition_that_was_not_joined(kaggle, tmp_path, competition):
    with pytest.raises(Refused, match=f"{competition}: not joined, .*kaggle.com/competitions/{competition}/rules"):
        remote.submit(competition, _csv(tmp_path), "run a 1", POLL)
    assert kaggle.count("StartSubmissionUpload") == 0


@pytest.mark.parametrize("status", [503, 0])
@pytest.mark.parametrize("late", [True, False])
def test_no_submission_is_sent_twice(kaggle, tmp_path, status, late):
    remote.submit("mars", _csv(tmp_path), "run a 1", POLL)
    kaggle.plant("CreateSubmission", status=status, late=late)
    if late:
        assert remote.submit("mars", _csv(tmp_path), "run a 2", POLL) == 1001
    else:
        with pytest.raises(Refused, match=r"no such submission listed; see .*/mars/submissions before"):
            remote.submit("mars", _csv(tmp_path), "run a 2", POLL)
    assert kaggle.count("CreateSubmission") == 2


def test_a_submission_that_kaggle_put_off_is_repeated(kaggle, tmp_path):
    kaggle.plant("CreateSubmission", status=429, times=2)
    remote.submit("mars", _csv(tmp_path), "run a 1", POLL)
    assert len(kaggle.submissions) == 1


def test_a_failed_upload_submits_nothing(kaggle, tmp_path):
    kaggle.plant("PUT", status=403)
    with pytest.raises(Refused, match=r"upload of .*mars\.csv failed and nothing was submitted"):
        remote.submit("mars", _csv(tmp_path), "run a 1", POLL)
    assert not kaggle.submissions


# The client's process, and its commands


def test_a_client_that_hangs_is_ended_and_started_anew(kaggle):
    kaggle.plant("GetKernel", status=-1)
    with pytest.raises(client.Declined, match="took more than 0 s") as declined:
        client.ask("get_kernel", limit=0.2, ref=f"{USER}/mars-fold-0")
    assert declined.value.in_doubt
    assert remote.user(POLL) == USER


def test_the_clients_own_commands_and_their_exit_statuses(kaggle, tmp_path):
    """What the module's docstring says of them; and that the server is Kaggle enough for them."""

    def command(*words):
        call = [sys.executable, "-c", "from kaggle.cli import main; main()", *map(str, words)]
        done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    status, said = command("kernels", "push", "-p", _folder(tmp_path, datasets=[f"{USER}/no-such-thing"]))
    assert status == 0 and "not valid dataset sources" in said and "Kernel version 1 successfully pushed" in said
    kaggle.plant("PUT", status=403)
    status, said = command("competitions", "submit", "mars", "-f", _csv(tmp_path), "-m", "x", "-q")
    assert status == 0 and said.strip() == "Could not submit to competition"
    status, said = command("competitions", "download", "mars", "-p", tmp_path, "-q")
    assert status == 0 and zipfile.ZipFile(tmp_path / "mars.zip").read("train.npz") == b"arrays"
