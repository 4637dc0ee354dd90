"""The real client against a server on loopback: what arrives there once, and what is said when it does not."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
from kaggle_server import KEY, TOKEN, USER, Competition, Kaggle

from comp.errors import Refused
from comp.kaggle import api, client, credentials

LINES = "one\ntwo\nthree"


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory):
    """One server for all tests, which the client logs in to once."""
    folder = tmp_path_factory.mktemp("kaggle")
    with Kaggle(folder, run=_run, score=_score) as server, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("KAGGLE_")] + ["XDG_CONFIG_HOME", "VERBOSE"]:
            patch.delenv(name, raising=False)
        for name, value in server.environment(folder / "home").items():
            patch.setenv(name, value)
        patch.setattr(tempfile, "tempdir", str(folder / "home"))  # where the client keeps what it uploads
        client.log_in.cache_clear()
        data = folder / "data"
        data.mkdir()
        (data / "train.npz").write_bytes(b"arrays")
        server.competitions = {"mars": Competition(data), "venus": Competition(data, joined=False)}
        yield server
    client.log_in.cache_clear()


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


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Whoever waits for Kaggle waits a hundredth of a second."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))


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


REF = f"{USER}/mars-fold-0"


def _push(ref=REF, text="print(1)\n", **sources):
    return api.push_kernel(ref, text, **sources)


def _complete(kaggle, ref):
    while kaggle.latest(ref).status not in ("COMPLETE", "ERROR"):
        time.sleep(0.01)


def _pushed(kaggle, **sources):
    kernel = _push(**sources)
    _complete(kaggle, kernel.ref)
    return kernel


def _status(ref=REF):
    return client.call_client("kernels_status", kernel=ref)["status"]


# Credentials


def test_user_with_a_token(kaggle):
    assert api.username() == USER


@pytest.mark.parametrize("token", [None, ""])
def test_user_with_name_and_key(kaggle, tmp_path, monkeypatch, token):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    if token is not None:  # an empty one is none
        monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    client.log_in.cache_clear()
    assert api.username() == USER
    assert api.upload_dataset(_weights(tmp_path), "fold-weights") == f"{USER}/fold-weights"
    kaggle.plant("GetKernelSessionStatus", status=400, message=f"{KEY} is odd")
    with pytest.raises(Refused, match=r"HTTP 400: \*\*\* is odd"):
        _status()
    kaggle.expired = True
    with pytest.raises(Refused, match=r"does not accept your credentials.*settings/api"):
        _status()


def test_user_with_kaggle_json(kaggle, tmp_path, monkeypatch):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))  # which the client reads when it is imported
    (tmp_path / "kaggle.json").write_text(json.dumps({"username": USER, "key": KEY}))
    script = "from comp.kaggle import api, credentials; print(api.username(), credentials.find_credentials())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == [USER, repr({KEY})], done.stderr


def test_no_credentials(kaggle, monkeypatch):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    client.log_in.cache_clear()
    with pytest.raises(Refused, match=r"no Kaggle credentials: .*settings/api"):
        api.username()


UNREADABLE = "cannot be read as JSON with a username and a key; download it again, or"


@pytest.mark.parametrize(
    "text", ['{"competition": "mars", "path": "/data"}', "[]", f'{{"username": "tester", "key": "{KEY}"']
)
def test_a_kaggle_json_that_holds_no_credentials(kaggle, tmp_path, text):
    """In a process of its own, since the client reads KAGGLE_CONFIG_DIR when it is imported."""
    (tmp_path / "kaggle.json").write_text(text)
    environment = {**os.environ, "KAGGLE_CONFIG_DIR": str(tmp_path)}
    del environment["KAGGLE_API_TOKEN"]
    script = "from comp.kaggle import api; api.username()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    line = done.stderr.strip().splitlines()[-1]
    assert f"{tmp_path}/kaggle.json: {UNREADABLE} make a token at" in line


@pytest.mark.parametrize(
    "text",
    [
        b"", b'{"username": "te', b'{"username": "tester", "ke', b'\xef\xbb\xbf{"username": "me", "key": "012345"}',
        b'{"username": "\xe9"}', b'{"username": "tester", "key": ""}', b"[1]", b"null", b'"username and key"',
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_kaggle_json(tmp_path, monkeypatch, text):
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_KEY", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    (tmp_path / "kaggle.json").write_bytes(text)
    assert credentials.explain_refusal() == f"{tmp_path}/kaggle.json: {UNREADABLE}"
    # Where something else is there to log in with, the file may hold settings alone.
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    assert "kaggle.json" not in credentials.explain_refusal()
    monkeypatch.delenv("KAGGLE_KEY")
    (tmp_path / "home/.kaggle").mkdir(parents=True)
    (tmp_path / "home/.kaggle/access_token").write_text(TOKEN)
    assert "kaggle.json" not in credentials.explain_refusal()


def test_a_token_that_expires_and_is_renewed_while_a_kernel_runs(kaggle, tmp_path, monkeypatch):
    file, renewed = tmp_path / "token", TOKEN[::-1]
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(file))
    client.log_in.cache_clear()
    file.write_text(TOKEN)
    kernel = _pushed(kaggle)
    kaggle.token = renewed
    with pytest.raises(Refused, match="expired") as refused:
        api.follow_kernel(kernel)
    assert TOKEN not in str(refused.value)
    file.write_text(renewed)
    assert _status() == "COMPLETE"


def test_credentials_are_struck_out_of_what_is_said(kaggle, tmp_path, monkeypatch):
    kaggle.plant("GetKernelSessionStatus", status=400, message=f"Bearer {TOKEN} is odd")
    with pytest.raises(Refused, match=r"HTTP 400: Bearer \*\*\* is odd"):
        _status()
    said = "GET https://me:secret@proxy/ https://storage/x?signature=abc&id=1 (url: /y?token=z)"
    assert credentials.redact(said) == "GET https://***@proxy/ https://storage/x?*** (url: /y?***)"
    monkeypatch.setenv("VERBOSE", "1")  # which lets the client print its authorization header
    client.log_in.cache_clear()
    api.username()
    assert "VERBOSE" not in os.environ


@pytest.mark.parametrize("text", [f"token = {TOKEN!r}", f'{{"key": "{KEY}"}}', 'x = "KGAT_aaaaaaaaaaaaaaaaaaaa"'])
def test_credentials_in_a_kernel_or_dataset_stay_here(kaggle, tmp_path, text):
    (tmp_path / "script.py").write_text(text)
    with pytest.raises(Refused, match=r"script\.py: holds a Kaggle key or token"):
        _push(text=text)
    with pytest.raises(Refused, match=r"script\.py: holds a Kaggle key or token"):
        api.upload_dataset({"script.py": tmp_path / "script.py"}, "fold-weights")
    assert not kaggle.count("SaveKernel") and not kaggle.count("StartBlobUpload")


# Pushing


def test_every_field_is_set_on_purpose(kaggle, tmp_path):
    kernel = _push(competition=["mars"])
    assert kernel == api.Kernel(REF, 1) and kernel.path == f"{USER}/mars-fold-0/v1"
    sent = next(body for call, body in kaggle.calls if call == "SaveKernel")
    assert sent["isPrivate"] is True and sent["enableInternet"] is False and sent["enableGpu"] is True
    assert sent["machineShape"] == "NvidiaTeslaT4" and sent["competitionDataSources"] == ["mars"]
    assert sent["newTitle"] == "mars-fold-0" and sent["text"] == "print(1)\n" and sent["kernelType"] == "script"


def test_the_same_source_is_pushed_once_and_a_changed_one_again(kaggle, capsys):
    kernel = _pushed(kaggle)
    assert _push().path == kernel.path
    assert "not pushed again" in capsys.readouterr().out
    assert _push(text="print(2)\n").version == 2
    assert kaggle.count("SaveKernel") == 2


def test_a_push_has_a_time_limit_and_is_refused_where_the_hours_do_not_do(kaggle, capsys):
    kaggle.hours = 18.5, 50.0  # days and hours
    kernel = _push(limit=5400, needed=7.5)
    assert kaggle.latest(REF).request["sessionTimeoutSeconds"] == 5400
    assert "GPU hours of this week: 18.5 of 50.0 used" in capsys.readouterr().out
    with pytest.raises(Refused, match=r"40\.0 GPU hours are asked for, and 31\.5 are left; a shorter --time-budget"):
        _push(text="print(2)\n", limit=5400, needed=40)
    assert kaggle.count("SaveKernel") == 1
    assert _push(needed=40).path == kernel.path  # which runs already


def test_a_failed_run_is_pushed_again(kaggle, tmp_path):
    _run.status = "ERROR"
    _pushed(kaggle)
    assert _push().version == 2


@pytest.mark.parametrize("status", [500, 503, 0])
def test_a_push_whose_answer_got_lost_is_not_repeated(kaggle, tmp_path, status):
    kaggle.plant("SaveKernel", status=status, late=True)
    assert _push().version == 1
    assert kaggle.count("SaveKernel") == 1


def test_a_lost_answer_to_a_source_that_had_failed_before(kaggle, tmp_path):
    _run.status = "ERROR"
    _pushed(kaggle)
    kaggle.plant("SaveKernel", late=True)
    assert _push().version == 2
    assert kaggle.count("SaveKernel") == 2


@pytest.mark.parametrize("status", [429, 503, 0])
def test_a_push_that_did_not_arrive_is_repeated(kaggle, tmp_path, status):
    kaggle.plant("SaveKernel", status=status, times=2)
    assert _push().version == 1
    assert kaggle.count("SaveKernel") == 3


@pytest.mark.parametrize("status", [400, 403])
def test_a_push_that_is_declined_is_not_repeated(kaggle, tmp_path, status):
    kaggle.plant("SaveKernel", status=status, message="Not like this")
    with pytest.raises(Refused, match=f"HTTP {status}: Not like this"):
        _push()
    assert kaggle.count("SaveKernel") == 1


@pytest.mark.parametrize("kind", ["dataset", "competition", "kernel", "model"])
def test_a_refused_source_is_named_though_the_client_succeeds(kaggle, tmp_path, kind):
    names = {"competition": "pluto", "model": f"{USER}/unet/pyTorch/salt/1"}
    name = names.get(kind, f"{USER}/no-such-thing")
    with pytest.raises(Refused, match=f"Kaggle has no {kind} {name} for you; version 1 runs without: stop it at http"):
        _push(**{kind: [name]})


def test_errors_that_come_with_http_200(kaggle, tmp_path):
    kaggle.plant("SaveKernel", answer={"error": "Maximum weekly GPU quota of 30.00 hours reached."})
    with pytest.raises(Refused, match="mars-fold-0: Kaggle refused the kernel: Maximum weekly GPU quota"):
        _push()
    kaggle.plant("SaveKernel", answer={"versionNumber": 0, "url": "https://www.kaggle.com/x"})
    with pytest.raises(Refused, match="started no run"):
        _push()


def test_a_push_that_finds_no_free_place(kaggle):
    _run.hold, kaggle.places = threading.Event(), 1
    first = _push()
    assert _push(f"{USER}/mars-fold-1") is None
    _run.hold.set()
    _complete(kaggle, first.ref)
    assert _push(f"{USER}/mars-fold-1").version == 1


# Following


def test_the_log_is_said_as_it_comes_and_once(kaggle):
    _run.hold, said = threading.Event(), []
    kernel = _push()
    kaggle.latest(kernel.ref).say("zero")

    def say(line):
        said.append((line, kaggle.latest(kernel.ref).status))
        if line == "zero":  # it came while the kernel ran: only then may the run end
            _run.hold.set()

    api.follow_kernel(kernel, say)
    assert [line for line, _ in said] == ["zero", *LINES.split()]
    assert said[0][1] == "RUNNING"


def test_a_stream_that_breaks_begins_anew_and_says_nothing_twice(kaggle, monkeypatch, capsys):
    _run.hold = threading.Event()
    monkeypatch.setattr(client, "SILENCE", 0.2)
    kernel = _push()
    capsys.readouterr()
    kaggle.latest(kernel.ref).say("zero")
    kaggle.plant("stream", status=503)
    threading.Timer(0.7, _run.hold.set).start()
    api.follow_kernel(kernel)
    assert kaggle.count("stream") > 2
    assert capsys.readouterr().out.split() == ["zero", *LINES.split()]


def test_following_outlasts_429_5xx_and_lost_connections(kaggle, monkeypatch):
    kernel = _pushed(kaggle)
    kaggle.plant("GetKernelSessionStatus", status=429)
    with pytest.raises(client.Declined, match="HTTP 429"):
        client.call_client("kernels_status", tries=1, kernel=kernel.ref)
    kaggle.plant("GetKernelSessionStatus", status=429)
    kaggle.plant("GetKernelSessionStatus", status=503, times=2)
    kaggle.plant("GetKernelSessionStatus", status=0, times=2)
    api.follow_kernel(kernel)


def test_a_long_wait_says_what_it_waits_for(kaggle, monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(client.time, "sleep", waits.append)
    kaggle.plant("GetKernelSessionStatus", status=503, times=3, message="Down for a while")
    with pytest.raises(Refused, match="HTTP 403"):  # there is no such kernel
        client.call_client("kernels_status", kernel=REF)
    assert waits == [2, 4, 8]
    assert "Kaggle answered HTTP 503: Down for a while; asking again in 4 s" in capsys.readouterr().out


def test_a_failed_kernel_says_its_log_and_then_one_line(kaggle, capsys):
    _run.status = "ERROR"
    kernel = _pushed(kaggle)
    capsys.readouterr()
    said = r"mars-fold-0: ended on Kaggle as ERROR: Your notebook was stopped.*its log"
    assert re.search(said, api.follow_kernel(kernel))
    assert capsys.readouterr().out.split() == LINES.split()


def test_the_run_before_is_not_taken_for_this_one(kaggle, tmp_path, capsys):
    _run.status, _run.files = "ERROR", {"first.txt": "1"}
    first = _pushed(kaggle)
    kaggle.latest(first.ref).say("of the first")
    _run.status, _run.files, _run.hold = "COMPLETE", {"second.txt": "2"}, threading.Event()
    kaggle.plant("GetKernelSessionStatus", status=404, message="No runs found for this kernel")
    second = _push()
    kaggle.plant("GetKernelSessionStatus", status=404, message="No runs found for this kernel")
    threading.Timer(0.2, _run.hold.set).start()
    api.follow_kernel(second)
    assert "of the first" not in capsys.readouterr().out
    assert "ended on Kaggle as ERROR" in api.follow_kernel(first)
    assert "of the first" in capsys.readouterr().out
    for kernel, name in ((first, "first.txt"), (second, "second.txt")):
        download_output(kernel, tmp_path / name)
        assert _files(tmp_path / name).keys() == {name, "mars-fold-0.log"}


def test_a_complete_kernel_is_not_waited_for(kaggle, monkeypatch):
    kernel = _pushed(kaggle)
    monkeypatch.setattr(api.time, "sleep", lambda seconds: pytest.fail("it waits"))
    assert _push().path == kernel.path
    api.follow_kernel(kernel)


def test_ctrl_c_leaves_the_kernel_running(kaggle, capsys):
    _run.hold = threading.Event()
    kernel = _push()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        api.follow_kernel(kernel)
    signal.signal(signal.SIGINT, before)
    assert f"{kernel.ref}: version 1 pushed" in (said := capsys.readouterr().out)
    assert "Ctrl-C here leaves it running" in said
    assert _push().path == kernel.path
    _run.hold.set()
    api.follow_kernel(kernel)
    assert kaggle.count("SaveKernel") == 1


def test_a_kernel_that_is_not_there(kaggle):
    with pytest.raises(Refused, match="HTTP 403: Cannot access kernel 'tester/no-kernel/v1'"):
        api.follow_kernel(api.Kernel(f"{USER}/no-kernel", 1))


# Collecting


def download_output(kernel, folder):
    client.call_client("kernels_output", kernel=kernel.path, path=str(folder))


def _files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_all_pages_of_output_arrive(kaggle, tmp_path):
    kaggle.page = 2
    _run.files = {f"runs/mars/a/fold-0/{name}.txt": name for name in "abcde"} | {"submission.csv": "id\n"}
    download_output(_pushed(kaggle), tmp_path / "got")
    assert _files(tmp_path / "got").items() > _run.files.items()


@pytest.mark.parametrize("status", [404, 500])
def test_an_error_page_is_not_taken_for_a_file(kaggle, tmp_path, status):
    kernel = _pushed(kaggle)
    kaggle.plant("file", status=status)
    if status == 500:
        download_output(kernel, tmp_path / "got")
        assert _files(tmp_path / "got")["submission.csv"] == "id,v\n"
    else:
        with pytest.raises(Refused, match="HTTP 404"):
            download_output(kernel, tmp_path / "got")
        assert _files(tmp_path / "got") == {}


# Datasets


def _weights(tmp_path):
    folder = tmp_path / "weights"
    (folder / "fold-0").mkdir(parents=True, exist_ok=True)
    (folder / "fold-0" / "model.safetensors").write_text("weights")
    (folder / "notes.txt").write_text("")
    return {name: folder / name for name in ("fold-0/model.safetensors", "notes.txt")}


def test_a_dataset_is_made_once_and_waited_for(kaggle, tmp_path):
    kaggle.looks_until_ready, weights, ref = 3, _weights(tmp_path), f"{USER}/fold-weights"
    for _ in range(2):
        assert api.upload_dataset(weights, "fold-weights") == ref
        assert kaggle.datasets[ref].request["isPrivate"] is True and not kaggle.datasets[ref].looks
    (folder,) = kaggle.datasets[ref].versions
    assert _files(folder) == {"fold-0/model.safetensors": "weights", "notes.txt": ""}
    kaggle.datasets[ref].looks = 3  # as if an earlier start had been interrupted
    assert api.upload_dataset(weights, "fold-weights") == ref and not kaggle.datasets[ref].looks
    _push(dataset=[ref])


def test_a_dataset_that_stays_unready_or_fails(kaggle, tmp_path, monkeypatch):
    kaggle.looks_until_ready = 1000
    monkeypatch.setattr(api, "PATIENCE", 0.05)
    with pytest.raises(Refused, match=r"fold-weights: not ready \(blobs_received\); see http"):
        api.upload_dataset(_weights(tmp_path), "fold-weights")
    monkeypatch.setattr(api, "PATIENCE", 60)
    kaggle.dataset_fails, kaggle.looks_until_ready = True, 1
    with pytest.raises(Refused, match=r"other-weights: not ready \(failed\); see .*; delete it there"):
        api.upload_dataset(_weights(tmp_path), "other-weights")


def test_a_dataset_that_misses_a_file_is_not_called_ready(kaggle, tmp_path):
    kaggle.plant("PUT", status=403)
    with pytest.raises(Refused, match=r"Kaggle's client: Upload unsuccessful: notes\.txt"):
        api.upload_dataset(_weights(tmp_path), "fold-weights")


@pytest.mark.parametrize(
    ("call", "late"), [("CreateDataset", True), ("CreateDataset", False), ("StartBlobUpload", False)]
)
def test_an_upload_whose_answer_got_lost_is_made_once(kaggle, tmp_path, call, late):
    kaggle.plant(call, status=0, late=late)
    kaggle.plant("GetDatasetStatus", status=503)
    api.upload_dataset(_weights(tmp_path), "fold-weights")
    assert len(kaggle.datasets[f"{USER}/fold-weights"].versions) == 1


def test_a_dataset_that_is_refused(kaggle, tmp_path):
    kaggle.plant("CreateDataset", answer={"status": "error", "error": "The requested title is already in use"})
    with pytest.raises(Refused, match="Kaggle refused it: The requested title is already in use"):
        api.upload_dataset(_weights(tmp_path), "fold-weights")


# Submissions


def _csv(tmp_path, text="id,v\n1,2\n"):
    path = tmp_path / "mars.csv"
    path.write_text(text)
    return path


def test_a_file_is_submitted_and_scored(kaggle, tmp_path):
    kaggle.looks_until_scored = 3
    ref = api.send_submission("mars", _csv(tmp_path), "run a 1")
    assert api.wait_score("mars", ref) == {"status": "COMPLETE", "public": "0.61", "private": "", "error": ""}
    assert kaggle.submissions[0]["_file"].read_text() == "id,v\n1,2\n"


def test_a_kernel_is_submitted(kaggle, tmp_path):
    kernel = _pushed(kaggle)
    ref = api.send_submission("mars", kernel, "run a 1")
    assert api.wait_score("mars", ref)["public"] == "0.61"
    with pytest.raises(Refused, match="HTTP 400: Could not find provided notebook version"):
        api.send_submission("mars", api.Kernel(kernel.ref, 7), "run a 2")
    assert len(kaggle.submissions) == 1


def test_what_is_wrong_with_a_submission_is_told(kaggle, tmp_path):
    ref = api.send_submission("mars", _csv(tmp_path, "image\n"), "run a 1")
    scored = {"status": "ERROR", "public": "", "private": "", "error": "Submission must have columns id, v"}
    assert api.wait_score("mars", ref) == scored
    kaggle.looks_until_scored = 1000
    ref = api.send_submission("mars", _csv(tmp_path), "run a 2")
    assert api.wait_score("mars", ref, patience=0.05) == {"status": "PENDING"}


@pytest.mark.parametrize("competition", ["venus", "pluto"])
def test_a_competition_that_was_not_joined(kaggle, tmp_path, competition):
    with pytest.raises(Refused, match=f"{competition}: not joined, .*kaggle.com/competitions/{competition}/rules"):
        api.send_submission(competition, _csv(tmp_path), "run a 1")
    assert kaggle.count("StartSubmissionUpload") == 0


@pytest.mark.parametrize("status", [503, 0])
@pytest.mark.parametrize("late", [True, False])
def test_no_submission_is_sent_twice(kaggle, tmp_path, status, late):
    api.send_submission("mars", _csv(tmp_path), "run a 1")
    kaggle.plant("CreateSubmission", status=status, late=late)
    if late:
        assert api.send_submission("mars", _csv(tmp_path), "run a 2") == 1001
    else:
        with pytest.raises(Refused, match=r"no such submission listed; see .*/mars/submissions before"):
            api.send_submission("mars", _csv(tmp_path), "run a 2")
    assert kaggle.count("CreateSubmission") == 2


def test_one_that_an_interrupted_start_sent_is_found_and_a_failed_one_is_not(kaggle, tmp_path):
    ref = api.send_submission("mars", _csv(tmp_path), "run a 1")
    assert api.send_submission("mars", _csv(tmp_path), "run a 1") == ref
    assert api.send_submission("mars", _csv(tmp_path), "in other words 1") == ref
    failed = api.send_submission("mars", _csv(tmp_path, "image\n"), "run a 2")
    assert api.wait_score("mars", failed)["status"] == "ERROR"
    assert api.send_submission("mars", _csv(tmp_path), "run a 2") != failed


def test_a_competitions_files_are_asked_for(kaggle):
    assert (api.find_size("mars", "train.npz"), api.find_size("mars", "other.npz")) == (len(b"arrays"), None)
    with pytest.raises(Refused, match="venus: not joined"):
        api.find_size("venus", "train.npz")


def test_a_datasets_version_is_asked_for(kaggle, tmp_path):
    ref = api.upload_dataset(_weights(tmp_path), "versioned-weights")
    assert (api.find_version(ref), api.find_version("tester/nothing-of-that-name")) == (1, 0)


def test_a_submission_that_kaggle_put_off_is_repeated(kaggle, tmp_path):
    kaggle.plant("CreateSubmission", status=429, times=2)
    api.send_submission("mars", _csv(tmp_path), "run a 1")
    assert len(kaggle.submissions) == 1


def test_a_failed_upload_submits_nothing(kaggle, tmp_path):
    kaggle.plant("PUT", status=403)
    with pytest.raises(Refused, match=r"upload of .*mars\.csv failed and nothing was submitted"):
        api.send_submission("mars", _csv(tmp_path), "run a 1")
    assert not kaggle.submissions


# The client, and its commands


def test_a_server_that_is_silent_is_not_waited_for_long(kaggle, monkeypatch):
    monkeypatch.setattr(client, "SILENCE", 0.2)
    kaggle.plant("GetKernel", status=-1)
    with pytest.raises(client.Declined, match="no answer from Kaggle") as declined:
        client.call_client("get_kernel", tries=1, ref=REF)
    assert declined.value.in_doubt
    assert api.username() == USER


def test_the_clients_own_commands_and_their_exit_statuses(kaggle, tmp_path):
    """What the module's docstring says of them; and that the server is Kaggle enough for them."""

    def command(*words):
        call = [sys.executable, "-c", "from kaggle.cli import main; main()", *map(str, words)]
        done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    (tmp_path / "script.py").write_text("print(1)")
    about = {"id": REF, "title": "mars fold 0", "code_file": "script.py", "language": "python", "kernel_type": "script"}
    lost = {"dataset_sources": [f"{USER}/no-such-thing"]}
    (tmp_path / "kernel-metadata.json").write_text(json.dumps(about | lost))
    status, said = command("kernels", "push", "-p", tmp_path)
    assert status == 0 and "not valid dataset sources" in said and "Kernel version 1 successfully pushed" in said
    kaggle.plant("PUT", status=403)
    status, said = command("competitions", "submit", "mars", "-f", _csv(tmp_path), "-m", "x", "-q")
    assert status == 1 and said.strip() == "Could not submit to competition"
    status, said = command("competitions", "download", "mars", "-p", tmp_path, "-q")
    assert status == 0 and zipfile.ZipFile(tmp_path / "mars.zip").read("train.npz") == b"arrays"
