"""Kaggle from here: push a kernel, follow it; upload datasets; download data; submit and wait for scores.

Nothing that changes Kaggle is done twice: where an answer got lost, Kaggle is asked first."""

import contextlib
import functools
import itertools
import json
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from comp import files
from comp.errors import Refused
from comp.kaggle import client, credentials
from comp.kaggle.client import SITE, Declined, Missing, call_client

ACTIVE = ("QUEUED", "RUNNING", "CANCEL_REQUESTED")
PATIENCE = 3600.0  # seconds to wait for a dataset or a score


class Kernel(NamedTuple):
    ref: str  # owner/slug
    version: int
    image: str = ""  # of Docker, in which the version runs

    @property
    def path(self) -> str:
        """This version, as Kaggle's client takes it."""
        return f"{self.ref}/v{self.version}"


def username() -> str:
    """The user's name, as the client finds it. Raises Refused where there are no valid credentials."""
    # The first call of all: without a network it should not wait for long.
    return call_client("get_config_value", tries=2, name="username")


def push_kernel(
    ref: str, source: str, limit: int = 0, needed: float = 0.0, draft: bool = False, **reads: Sequence[str]
) -> Kernel | None:
    """Push a script as a private kernel on T4s without internet, which starts it; None while Kaggle has no place free.

    A draft is a notebook's JSON, and is only saved. Where Kaggle's latest version already has this very source and is
    not a failure, that version is returned and nothing pushed. Kaggle ends it after `limit` seconds, 0 for its own 12
    hours. `needed` are the GPU hours that it and those after it may take. `reads` names what it reads by kind: dataset,
    competition, kernel, model. Raises Refused, also where fewer hours are left in this week."""
    form, file = ("notebook", "notebook.ipynb") if draft else ("script", "script.py")
    about = {
        "id": ref, "title": ref.partition("/")[2],  # another title would make another slug
        "code_file": file, "language": "python", "kernel_type": form, "is_private": True,
        "enable_gpu": True, "machine_shape": "NvidiaTeslaT4", "enable_internet": False,  # the client's default is true
        **{f"{kind}_sources": names for kind, names in reads.items()},
    }  # fmt: skip
    latest, before = find_latest(ref)
    if before == source.strip():
        state = "SAVED" if draft else (_find("kernels_status", kernel=latest.path) or {}).get("status")
        if state in ("SAVED", *ACTIVE, "COMPLETE"):
            print(f"{ref}: version {latest.version} is this very job, {state.lower()}; not pushed again")
            return latest

    if not draft and (hours := _find("get_gpu_hours")):
        used, allowed = hours
        print(f"GPU hours of this week: {used:.1f} of {allowed:.1f} used", flush=True)
        if needed > allowed - used:
            fits = "a shorter --time-budget or fewer folds would fit"
            raise Refused(f"{ref}: {needed:.1f} GPU hours are asked for, and {allowed - used:.1f} are left; {fits}")

    def arrived() -> Kernel | None:
        now, there = find_latest(ref)
        return now if there == source.strip() and now.version != latest.version else None

    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / file
        script.write_text(source, encoding="utf-8")
        credentials.refuse_credentials([script])
        files.write_json(Path(folder) / "kernel-metadata.json", about)
        answer = call_client("kernels_push", arrived, folder=folder, timeout=str(limit or ""), no_run=draft)
    if isinstance(answer, Kernel):
        return answer
    if "session count" in (answer["error"] or ""):
        return None
    if answer["error"] or not answer["versionNumber"]:
        raise Refused(f"{ref}: Kaggle refused the kernel: {answer['error'] or 'it started no run'}")
    kernel, page = Kernel(ref, answer["versionNumber"]), f"{SITE}/code/{ref}"
    if lost := [f"{kind} {name}" for kind in reads for name in answer[f"invalid{kind.title()}Sources"] or []]:
        without = f"version {kernel.version} runs without: stop it at {page}, correct the source, push again"
        raise Refused(f"{ref}: Kaggle has no {', '.join(lost)} for you; {without}")
    then = "open it there, and run it" if draft else "Ctrl-C here leaves it running"
    print(f"{ref}: version {kernel.version} pushed, {page}; {then}", flush=True)
    return kernel


def follow_kernel(kernel: Kernel, say: Callable[[str], None] = print) -> str:
    """Wait until a kernel has run, saying each line of its log once; return why it failed, or "". Raises Refused."""
    told = 0
    while True:
        # A version that was just pushed may not be known for a moment.
        run = call_client("kernels_status", tries=20, again=(404,), kernel=kernel.path)
        if run["status"] != "QUEUED":
            with contextlib.suppress(Declined):  # the stream is cut now and then, and begins anew
                for line in itertools.islice(client.read_log(kernel.path), told, None):
                    say(line)
                    told += 1
        if run["status"] == "COMPLETE":
            return ""
        if run["status"] not in ACTIVE:
            why = run["failureMessage"] or "it gives no reason"
            return f"{kernel.ref}: ended on Kaggle as {run['status']}: {why}; its log is above"
        time.sleep(30)


def find_latest(ref: str) -> tuple[Kernel, str]:
    """The latest version of a kernel and its source; version 0 without one where there is no such kernel."""
    if not (there := _find("get_kernel", ref=ref)):
        return Kernel(ref, 0), ""
    about, source = there["metadata"], there["blob"]["source"] or ""
    return Kernel(ref, about["currentVersionNumber"] or 0, about.get("dockerImage") or ""), source.strip()


def upload_dataset(contents: Mapping[str, Path], slug: str) -> str:
    """Upload files as a private dataset, unless it is there, and wait until it is ready. Returns owner/slug.

    `contents` maps where a file lies in the dataset to where it lies here. Raises Refused."""
    ref = f"{username()}/{slug}"
    find_state = functools.partial(_find, "dataset_status", dataset=ref)
    if not find_state():
        credentials.refuse_credentials(contents.values())
        size = sum(path.stat().st_size for path in contents.values()) / 1e6
        print(f"dataset {ref}: new, {len(contents)} files, {size:.1f} MB", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for place, path in contents.items():
                link = Path(folder) / place
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
            about = {"id": ref, "title": slug, "licenses": [{"name": "other"}]}
            files.write_json(Path(folder) / "dataset-metadata.json", about)
            answer = call_client("dataset_create_new", find_state, folder=folder, dir_mode="zip")
        if isinstance(answer, dict) and answer["status"].lower() != "ok":  # else its state stands in for a lost answer
            raise Refused(f"dataset {ref}: Kaggle refused it: {answer['error']}")
    end = time.monotonic() + PATIENCE
    while (state := find_state()) != "ready":
        if state in ("failed", "deleted") or time.monotonic() > end:
            raise Refused(f"{ref}: not ready ({state}); see {SITE}/datasets/{ref}; delete it there if it failed")
        time.sleep(10)
    return ref


def find_size(competition: str, name: str) -> int | None:
    """Bytes of a file among the first 200 of a competition's data; None: no such file. Raises Refused if not joined."""
    listed = _ask_about(competition, "competition_list_files", page_size=200)["files"] or []
    return next((file["totalBytes"] or 0 for file in listed if Path(file["name"]).name == name), None)


def find_version(dataset: str) -> int:
    """The newest version of a dataset, owner/slug; 0 where there is none for this user."""
    found = _find("dataset_status", dataset=dataset, format="json")
    return json.loads(found)["current_version_number"] or 0 if found else 0


def download_competition(competition: str, folder: Path) -> Path:
    """Bring a competition's data to folder/<competition>, its archives opened, unless it is there; return that folder.

    It appears whole; an interrupted download goes on where it was. Refused: not joined, or no room on the disk."""
    there, work = folder / competition, folder / f".download-{competition}"
    if there.is_dir():
        return there
    _ask_about(competition, "competition_list_files")  # before there is a folder
    with files.lock_folder(work):
        print(f"downloads {competition} to {there}", flush=True)
        _ask_about(competition, "competition_download_files", path=str(work), quiet=False)
        opened = work / "opened"
        shutil.rmtree(opened, ignore_errors=True)  # of a start that was killed
        opened.mkdir()
        try:
            for file in work.glob("[!.]*.*"):
                _open_archive(file, opened) if file.suffix == ".zip" else shutil.copy(file, opened)
            while archives := list(opened.rglob("*.zip")):  # some hold others
                for file in archives:
                    _open_archive(file, file.with_suffix(""))
                    file.unlink()
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            shutil.rmtree(work)
            raise Refused(f"{competition}: came damaged ({error}); the same command downloads it again") from None
        except RuntimeError as error:  # another compression, a password
            raise Refused(f"{file}: Python cannot open it ({error}); open it by hand, as {there}") from None
        opened.rename(there)
        shutil.rmtree(work)
    return there


def send_submission(competition: str, what: Path | Kernel, message: str) -> int:
    """Submit a file, or the submission.csv that a kernel's version left; returns the submission's number.

    The last word of `message` must be like no other: a submission that ends in it already, of an interrupted
    start or with an answer that got lost, is found by it and not sent again. Raises Refused."""
    word = message.split(" ")[-1]

    def find() -> Any:
        entries = _ask_about(competition, "competition_submissions", page_size=100)
        alike = (entry for entry in entries if f" {entry['description']}".endswith(f" {word}"))
        return next((entry for entry in alike if entry["status"] != "ERROR"), None)

    def arrived() -> Any:
        time.sleep(10)  # until Kaggle lists it
        if entry := find():
            return entry
        page = f"{SITE}/competitions/{competition}/submissions"
        raise Refused(f"{competition}: no answer, and no such submission listed; see {page} before you submit again")

    if entry := find():
        return entry["ref"]
    call = functools.partial(call_client, arrived=arrived, competition=competition, message=message)
    if isinstance(what, Kernel):
        sent = call("competition_submit_code", kernel=what.ref, kernel_version=what.version, file_name="submission.csv")
    else:
        sent = call("competition_submit", file_name=str(what))
    if sent.get("message") == "Could not submit to competition":
        raise Refused(f"{competition}: the upload of {what} failed and nothing was submitted; try again")
    return sent["ref"] or arrived()["ref"]


def wait_score(competition: str, ref: int, patience: float = PATIENCE) -> dict[str, str]:
    """Wait until a submission is scored: its `status`, COMPLETE or ERROR, `public` and `private` score, `error`.

    The status alone, PENDING, where `patience` seconds did not do. Raises Refused."""
    end = time.monotonic() + patience
    while True:
        for entry in _ask_about(competition, "competition_submissions", page_size=100):
            if entry["ref"] == ref and entry["status"] != "PENDING":
                keys = {"public": "publicScore", "private": "privateScore", "error": "errorDescription"}
                return {"status": entry["status"]} | {name: entry[key] or "" for name, key in keys.items()}
        if time.monotonic() > end:
            return {"status": "PENDING"}
        time.sleep(10)


def _ask_about(competition: str, method: str, **arguments: Any) -> Any:
    """Ask about a competition. Raises Refused where it was not joined."""
    try:
        return call_client(method, competition=competition, **arguments)
    except Missing:
        page = f"{SITE}/competitions/{competition}/rules"
        raise Refused(f"{competition}: not joined, or no such competition; accept its rules at {page}") from None


def _open_archive(path: Path, place: Path) -> None:
    """Put what a zip file holds into a folder, but for a folder of its own name around it and macOS's extra files."""
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX/")]
        size, free = sum(member.file_size for member in members), files.free_bytes(path)
        if size > free:
            raise Refused(f"{path}: opened it takes {size / 1e6:,.0f} MB; the disk has {free / 1e6:,.0f} MB free")
        if {member.filename.split("/")[0] for member in members} == {place.name}:
            place = place.parent
        for member in tqdm(members, desc=path.name, unit=" files", disable=None):
            archive.extract(member, place)


def _find(method: str, **arguments: Any) -> Any:
    """Ask about what may not be there; None where it is not, or not for this user."""
    with contextlib.suppress(Missing):
        return call_client(method, **arguments)
