"""A small Kaggle on loopback, for the real client to talk to.

It answers the calls that pushing, following, uploading and submitting make (a POST of JSON to
`/api/v1/<service>/<Call>`; each is a method of `Kaggle` by its own name), keeps what it is given in
memory and in one folder, runs pushed kernels and scores submissions with functions that the test
hands in, and fails on request as Kaggle fails.

    with Kaggle(folder, run=run, score=score) as kaggle:
        os.environ |= kaggle.environment(home)     # then drive the client
        kaggle.plant("SaveKernel", status=503)     # the next push gets HTTP 503

`run(text, request, inputs) -> (status, files, log)`: `text` is the pushed source and `request` the
whole SaveKernel call; `inputs` maps where an input lies below /kaggle/input ("competitions/<slug>",
"datasets/<owner>/<slug>", "notebooks/<owner>/<slug>") to a folder; `files` is the folder of outputs.
`score(file, competition) -> (public, private)`; a ValueError is what is wrong with the file."""

import base64
import contextlib
import io
import json
import re
import shutil
import socket
import tarfile
import tempfile
import threading
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

USER, TOKEN, KEY = "tester", "KGAT_0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdef"
ENDED = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")


class Error(Exception):
    """What is answered with an HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass
class Fault:
    call: str
    status: int  # of HTTP; 0: the connection is dropped; -1: no answer comes
    times: int
    late: bool  # the call is carried out first, and only its answer is lost
    message: str
    answer: dict | None  # answered in place of the real thing, with HTTP 200


@dataclass
class Version:
    number: int
    request: dict
    status: str = "QUEUED"
    failure: str = ""
    files: Path | None = None
    events: list[dict] = field(default_factory=list)
    image: str = ""

    def say(self, line: str) -> None:
        self.events.append({"stream_name": "stdout", "time": len(self.events), "data": line + "\n"})


@dataclass
class Dataset:
    request: dict
    versions: list[Path]
    looks: int  # how often its status is asked before the newest version is ready


@dataclass
class Competition:
    files: Path | None = None
    joined: bool = True


class Kaggle:
    def __init__(self, folder: Path, run: Callable | None = None, score: Callable | None = None):
        self.folder, self.run, self.score = Path(folder), run, score
        self.kernels: dict[str, list[Version]] = {}
        self.datasets: dict[str, Dataset] = {}
        self.competitions: dict[str, Competition] = {}
        self.submissions: list[dict] = []
        self.blobs: dict[str, tuple[str, bytes | None]] = {}  # token: file name, bytes once they came
        self.calls: list[tuple[str, dict]] = []
        self.faults: list[Fault] = []
        self.token, self.expired = TOKEN, False
        self.places = 2  # kernels that may run at a time
        self.image = "gcr.io/kaggle-gpu-images/python@sha256:one"  # in which the next kernel runs
        self.hours = 2.5, 30.0  # of GPUs: used in this week, and allowed
        self.looks_until_ready = 1  # of a dataset
        self.looks_until_scored = 1
        self.dataset_fails = False
        self.page = 20
        self.closed = threading.Event()
        self._lock = threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.kaggle = self
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "Kaggle":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._http.shutdown()
        self._http.server_close()

    def environment(self, home: Path, credentials: bool = True) -> dict[str, str]:
        """What points the client here, with a home and temporary folder of its own."""
        Path(home).mkdir(parents=True, exist_ok=True)
        proxy = {"http_proxy": self.url, "HTTP_PROXY": self.url, "no_proxy": "", "NO_PROXY": ""}
        login = {"KAGGLE_API_TOKEN": TOKEN} if credentials else {}
        return {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "HOME": str(home), "TMPDIR": str(home), **proxy, **login}

    def plant(
        self,
        call: str,
        status: int = 0,
        times: int = 1,
        late: bool = False,
        message: str = "",
        answer: dict | None = None,
    ) -> None:
        """Let the next `times` calls named `call` ("PUT", "file" and "stream" for the plain ones) fail."""
        self.faults.append(Fault(call, status, times, late, message, answer))

    def count(self, call: str) -> int:
        return sum(name == call for name, _ in self.calls)

    def latest(self, ref: str) -> Version:
        if ref not in self.kernels:
            raise Error(403, "Permission 'kernels.get' was denied")
        return self.kernels[ref][-1]

    def version(self, body: dict) -> Version:
        """The version of a kernel that a call is about, the latest where it names none."""
        ref, label = f"{body['userName']}/{body['kernelSlug']}", body.get("versionLabel", "")
        latest = self.latest(ref)
        found = [version for version in self.kernels[ref] if f"v{version.number}" == label]
        if label and not found:
            raise Error(404, "No runs found for this kernel")
        return found[0] if label else latest

    def fault(self, call: str) -> Fault | None:
        with self._lock:
            found = next((fault for fault in self.faults if fault.call == call and fault.times), None)
            if found:
                found.times -= 1
            return found

    def answer(self, call: str, body: dict, authorization: str) -> dict | str:
        """The answer to a call, or the place where it is redirected to."""
        basic = "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode()
        known = not self.expired and authorization in (f"Bearer {self.token}", basic)
        if call == "IntrospectToken":
            return {"active": known, "username": USER} if known else {"active": False}
        if not known:
            raise Error(401, "Unauthenticated")
        with self._lock:
            return getattr(self, call)(body)

    def _place(self, kind: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self.folder))

    # Kernels

    def SaveKernel(self, body: dict) -> dict:
        owner, slug = body["slug"].split("/")
        if owner != USER:
            return {"error": "Notebook not found"}
        if len(body["text"].encode()) >= 1_000_000:
            raise Error(400, "The source is too large: it must be under 1 MB")
        active = [ref for ref, versions in self.kernels.items() if versions[-1].status not in ENDED]
        if len(active) >= self.places:
            return {"error": f"Maximum batch GPU session count of {self.places} reached."}
        ref = f"{owner}/{_slug(body.get('newTitle', slug))}"  # a title that does not fit moves the kernel
        versions = self.kernels.setdefault(ref, [])
        versions.append(Version(len(versions) + 1, body, image=self.image))
        known = {"dataset": self.datasets, "kernel": self.kernels, "competition": self.competitions, "model": {}}
        invalid = {}
        for kind, there in known.items():
            lost = [source for source in body.get(f"{kind}DataSources", []) if source not in there]
            invalid |= {f"invalid{kind.title()}Sources": lost} if lost else {}
        if body.get("kernelExecutionType") == "QUICK_SAVE":
            versions[-1].status = "COMPLETE"
        else:
            threading.Thread(target=self._run, args=(versions[-1],), daemon=True).start()
        url = f"https://www.kaggle.com/code/{ref}"
        return {"ref": f"/code/{ref}", "url": url, "versionNumber": len(versions), **invalid}

    def GetAcceleratorQuotaStatistics(self, body: dict) -> dict:
        used, allowed = (f"{hours * 3600:.0f}s" for hours in self.hours)
        return {"gpuQuota": {"timeUsed": used, "totalTimeAllowed": allowed}}

    def _run(self, version: Version) -> None:
        try:
            inputs = self._inputs(version.request)
            version.status = "RUNNING"
            status, version.files, log = self.run(version.request["text"], version.request, inputs)
        except Exception:
            status, log = "ERROR", traceback.format_exc()
        for line in log.splitlines():
            version.say(line)
        version.failure = "Your notebook was stopped by an error" if status == "ERROR" else ""
        version.status = status

    def _inputs(self, body: dict) -> dict[str, Path]:
        inputs = {}
        for source in body.get("competitionDataSources", []):
            if source in self.competitions and self.competitions[source].files:
                inputs[f"competitions/{source}"] = self.competitions[source].files
        for source in body.get("datasetDataSources", []):
            if source in self.datasets:
                inputs[f"datasets/{source}"] = self.datasets[source].versions[-1]
        for source in body.get("kernelDataSources", []):
            done = [v.files for v in self.kernels.get(source, []) if v.status == "COMPLETE" and v.files]
            if done:
                inputs[f"notebooks/{source}"] = done[-1]
        return inputs

    def GetKernelSessionStatus(self, body: dict) -> dict:
        version = self.version(body)
        return {"status": version.status, **({"failureMessage": version.failure} if version.failure else {})}

    def GetKernel(self, body: dict) -> dict:
        ref = f"{body['userName']}/{body['kernelSlug']}"
        version = self.latest(ref)
        sent = version.request
        metadata = {"ref": ref, "title": sent["newTitle"], "currentVersionNumber": version.number}
        metadata["dockerImage"] = version.image
        kind = {"language": sent["language"], "kernelType": sent["kernelType"]}
        return {"metadata": metadata | kind, "blob": {"source": sent["text"], "slug": body["kernelSlug"], **kind}}

    def ListKernelSessionOutput(self, body: dict) -> dict:
        ref, version = f"{body['userName']}/{body['kernelSlug']}", self.version(body)
        start, size = int(body.get("pageToken") or 0), min(body.get("pageSize", self.page), self.page)
        root = version.files if version.status in ENDED else None
        names = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) if root else []
        files = [
            {"fileName": name, "url": f"{self.url}/output/{ref}/{version.number}/{quote(name)}"}
            for name in names[start : start + size]
        ]
        more = {"nextPageToken": str(start + size)} if start + size < len(names) else {}
        return {"files": files, "log": json.dumps(version.events) if version.status in ENDED else "", **more}

    # Datasets

    def GetDatasetStatus(self, body: dict) -> dict:
        dataset = self._dataset(body)
        dataset.looks = max(0, dataset.looks - 1)
        if self.dataset_fails and not dataset.looks:
            return {"status": "FAILED"}
        # Kaggle serves the version before while a new one is still worked on.
        return {"status": "BLOBS_RECEIVED" if dataset.looks and len(dataset.versions) == 1 else "READY"}

    def GetDataset(self, body: dict) -> dict:
        dataset = self._dataset(body)
        ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
        return {"ref": ref, "currentVersionNumber": len(dataset.versions) - bool(dataset.looks)}

    def _dataset(self, body: dict) -> Dataset:
        ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
        if ref not in self.datasets:
            raise Error(404, "Dataset not found")
        return self.datasets[ref]

    def CreateDataset(self, body: dict) -> dict:
        ref = f"{body['ownerSlug']}/{body['slug']}"
        if ref in self.datasets:
            return {"status": "error", "error": f"The requested title {body['title']!r} is already in use"}
        self.datasets[ref] = Dataset(body, [], 0)
        return self._version(ref, body)

    def CreateDatasetVersion(self, body: dict) -> dict:
        self._dataset(body)
        return self._version(f"{body['ownerSlug']}/{body['datasetSlug']}", body["body"])

    def _version(self, ref: str, body: dict) -> dict:
        dataset = self.datasets[ref]
        folder = self._place("dataset")
        for file in body.get("files", []):
            name, data = self.blobs[file["token"]]
            _unpack(name, data, folder)
        dataset.versions.append(folder)
        dataset.looks = self.looks_until_ready
        return {"status": "ok", "ref": f"/{ref}", "url": f"https://www.kaggle.com/datasets/{ref}"}

    # Uploads

    def StartBlobUpload(self, body: dict) -> dict:
        token = f"blob-{len(self.blobs)}"
        self.blobs[token] = (body["name"], None)
        return {"token": token, "createUrl": f"{self.url}/upload/{token}?signature=secret-{token}"}

    def StartSubmissionUpload(self, body: dict) -> dict:
        self._joined(body)
        return self.StartBlobUpload({"name": body["fileName"]})

    # Competitions

    def _joined(self, body: dict) -> Competition:
        competition = self.competitions.get(body["competitionName"])
        if competition is None or not competition.joined:
            raise Error(403, "Permission 'competitions.participate' was denied")
        return competition

    def CreateSubmission(self, body: dict) -> dict:
        self._joined(body)
        name, data = self.blobs[body["blobFileTokens"]]
        return self._submit(body, name, data)

    def CreateCodeSubmission(self, body: dict) -> dict:
        self._joined(body)
        versions = self.kernels.get(f"{body['kernelOwner']}/{body['kernelSlug']}", [])
        number = body.get("kernelVersion", 0)
        file = None
        if 0 < number <= len(versions) and versions[number - 1].status == "COMPLETE":
            file = versions[number - 1].files / body["fileName"]
        if not file or not file.is_file():
            raise Error(400, "Could not find provided notebook version or its output file")
        return self._submit(body, body["fileName"], file.read_bytes())

    def _submit(self, body: dict, name: str, data: bytes) -> dict:
        ref, competition = 1000 + len(self.submissions), body["competitionName"]
        file = self._place("submission") / name
        file.write_bytes(data)
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        about = {"ref": ref, "date": date, "description": body.get("submissionDescription", ""), "fileName": name}
        hidden = {"_competition": competition, "_looks": self.looks_until_scored, "_file": file}
        self.submissions.append(about | hidden | {"status": "PENDING"})
        return {"message": f"Successfully submitted to {competition}", "ref": ref}

    def ListSubmissions(self, body: dict) -> dict:
        self._joined(body)
        mine = [s for s in reversed(self.submissions) if s["_competition"] == body["competitionName"]]
        for submission in mine:
            submission["_looks"] -= 1
            if submission["status"] == "PENDING" and submission["_looks"] < 0:
                submission |= self._scored(submission)
        shown = [{key: value for key, value in s.items() if key[0] != "_"} for s in mine]
        return {"submissions": shown[: body.get("pageSize", 20)]}

    def _scored(self, submission: dict) -> dict:
        try:
            public, private = self.score(submission["_file"], submission["_competition"])
        except ValueError as error:
            return {"status": "ERROR", "errorDescription": str(error)}
        scores = {"publicScore": public, "privateScore": private}
        return {"status": "COMPLETE"} | {key: str(value) for key, value in scores.items() if value is not None}

    def GetSubmissionLimits(self, body: dict) -> dict:
        return {"numToday": len(self.submissions), "numAllowedNow": max(0, 5 - len(self.submissions))}

    def ListDataFiles(self, body: dict) -> dict:
        root = self._joined(body).files
        paths = sorted(path for path in root.rglob("*") if path.is_file())[: body.get("pageSize", 20)]
        return {"files": [{"name": str(path.relative_to(root)), "totalBytes": path.stat().st_size} for path in paths]}

    def DownloadDataFiles(self, body: dict) -> str:
        self._joined(body)
        return f"http://localhost/data/{body['competitionName']}.zip"

    def DownloadDataFile(self, body: dict) -> str:
        self._joined(body)
        return f"http://localhost/data/{body['competitionName']}/{quote(body['fileName'])}"

    # Plain files

    def put(self, token: str, data: bytes, span: str) -> int:
        name, before = self.blobs.get(token, ("", None))
        if not name:
            return 404
        if span.startswith("bytes */"):  # the client asks how far an upload has come
            return 308 if before is None else 200
        self.blobs[token] = (name, data)
        return 200

    def file(self, path: str) -> bytes:
        kind, *rest = path.strip("/").split("/")
        if kind == "output":
            owner, slug, number, *name = rest
            return (self.kernels[f"{owner}/{slug}"][int(number) - 1].files / "/".join(name)).read_bytes()
        root = self.competitions[rest[0].removesuffix(".zip")].files
        if len(rest) > 1:
            return (root / "/".join(rest[1:])).read_bytes()
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as packed:
            for file in sorted(p for p in root.rglob("*") if p.is_file()):
                packed.write(file, file.relative_to(root))
        return archive.getvalue()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        call, body = urlsplit(self.path).path.rsplit("/", 1)[-1], json.loads(self._body() or b"{}")
        kaggle = self.server.kaggle
        kaggle.calls.append((call, body))
        self._with_faults(call, lambda: self._post(call, body))

    def _post(self, call: str, body: dict) -> tuple[int, dict, bytes]:
        try:
            answer = self.server.kaggle.answer(call, body, self.headers.get("Authorization", ""))
        except Error as error:
            return _json(error.status, {"code": error.status, "message": str(error)})
        return (302, {"Location": answer}, b"") if isinstance(answer, str) else _json(200, answer)

    def do_PUT(self) -> None:
        data, token = self._body(), urlsplit(self.path).path.rsplit("/", 1)[-1]
        self.server.kaggle.calls.append(("PUT", {"token": token, "bytes": len(data)}))
        span = self.headers.get("Content-Range", "")
        self._with_faults("PUT", lambda: (self.server.kaggle.put(token, data, span), {}, b""))

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        name = "stream" if "/logs/stream/" in path else "file"
        self.server.kaggle.calls.append((name, {"path": path}))
        if name == "stream":
            self._with_faults(name, lambda: self._stream(path, parse_qs(address.query)))
        else:
            self._with_faults(name, lambda: (200, {}, self.server.kaggle.file(path)))

    def _stream(self, path: str, query: dict) -> tuple[int, dict, bytes] | None:
        *_, owner, slug = path.split("/")
        about = {"userName": owner, "kernelSlug": slug, "versionLabel": query.get("versionLabel", [""])[0]}
        version = self.server.kaggle.version(about)
        if version.status in ENDED:
            return 200, {"Content-Type": "application/json"}, json.dumps(version.events).encode()
        self.protocol_version = "HTTP/1.1"  # in chunks, or the client would wait for 512 bytes
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        told, ended = 0, False
        while not ended:
            ended = version.status in ENDED  # asked before the events, so that the last are not missed
            for event in version.events[told:]:
                self._chunk(f"data: {json.dumps(event)}\n\n")
                told += 1
            time.sleep(0.01)
        self._chunk("data: END_OF_LOG\n\n")
        self._chunk("")
        return None

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _with_faults(self, call: str, respond: Callable[[], tuple[int, dict, bytes] | None]) -> None:
        fault = self.server.kaggle.fault(call)
        answer = respond() if fault is None or fault.late else None
        if fault and fault.answer is not None:
            answer = _json(200, fault.answer)
        elif fault and fault.status <= 0:
            if fault.status < 0:
                self.server.kaggle.closed.wait(60)
            with contextlib.suppress(OSError):  # the client may have left
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        elif fault:
            message = fault.message or self.responses[fault.status][0]
            answer = _json(fault.status, {"code": fault.status, "message": message})
        if answer is None:  # streamed already
            return
        status, headers, data = answer
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data


def _json(status: int, value: dict) -> tuple[int, dict, bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _unpack(name: str, data: bytes, folder: Path) -> None:
    """Put an uploaded file into a dataset; archives become folders, as on Kaggle."""
    if name.endswith(".zip"):
        zipfile.ZipFile(io.BytesIO(data)).extractall(folder / name.removesuffix(".zip"))
    elif name.endswith(".tar"):
        tarfile.open(fileobj=io.BytesIO(data)).extractall(folder / name.removesuffix(".tar"), filter="data")
    else:
        with open(folder / name, "wb") as file:
            shutil.copyfileobj(io.BytesIO(data), file)
