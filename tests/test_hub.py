"""Pretrained encoders from a hub: one on loopback, which a process of its own asks, since the library reads its
address when it is imported."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import safetensors.torch
import torch

from comp import files
from comp.config import Model
from comp.errors import Refused
from comp.model import hub

COMMIT = "1234567890abcdef1234567890abcdef12345678"
ROOT = Path(__file__).parents[1]
BUILD = """
import sys, torch
from comp.config import Model
from comp.errors import Refused
from comp.model import segmenter
torch.manual_seed(0)
model = Model(encoder=sys.argv[1], encoder_weights=sys.argv[2], options={"decoder_channels": [8, 8, 8, 8, 8]})
try:
    made, note = segmenter.build_segmenter(model, int(sys.argv[3]), 2, torch.zeros(3), torch.ones(3))
except Refused as refused:
    sys.exit(f"refused: {refused}")
import safetensors.torch
tensors = {key: value.contiguous() for key, value in made.net.encoder.state_dict().items()}
safetensors.torch.save_file(tensors, "encoder.safetensors")
print(note, made.mean.flatten().tolist())
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves files by "owner/name/file", and keeps what it was asked."""

    files: ClassVar[dict] = {}
    asked: ClassVar[list] = []
    cut = wrong = False

    def log_message(self, *_):
        pass

    def do_HEAD(self, body=False):
        if "/resolve/" not in self.path:  # the library tells how it is used, and expects nothing
            self.send_response(404)
            self.end_headers()
            return
        owner, name, _, revision, file = self.path.lstrip("/").split("/")
        self.asked.append(f"{self.command} {owner}/{name}/{file}")
        data = self.files.get(f"{owner}/{name}/{file}")
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        digest = hashlib.sha256(data + b"x" * self.wrong).hexdigest()
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT if revision == "main" else revision)
        self.send_header("ETag", f'"{digest}"')
        self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            self.wfile.write(data[start : len(data) // 2] if self.cut and not start else data[start:])

    def do_GET(self):
        self.do_HEAD(body=True)


@pytest.fixture
def served(tmp_path):
    """A hub with an encoder of timm's and one of segmentation-models-pytorch's; returns its class and how to ask it."""
    import segmentation_models_pytorch as smp
    import timm

    torch.manual_seed(1)
    made = {"timm/resnet10t.c3_in1k/model.safetensors": timm.create_model("resnet10t").state_dict()}
    own = smp.encoders.get_encoder("resnet18", weights=None)
    made["smp-hub/resnet18.imagenet/model.safetensors"] = own.state_dict()
    place = type("Hub", (Hub,), {"asked": [], "files": {}})
    place.files = {name: safetensors.torch.save(tensors) for name, tensors in made.items()}
    about = {"mean": [0.5, 0.25, 0.125], "std": [0.5, 0.5, 0.5]}
    place.files["smp-hub/resnet18.imagenet/config.json"] = json.dumps(about).encode()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), place)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def build(encoder, weights="imagenet", channels=3, **environment):
        place.asked.clear()
        env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        env |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache")}
        env |= {"PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"} | environment
        command = [sys.executable, "-c", BUILD, encoder, weights, str(channels)]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)

    yield place, build, made
    server.shutdown()


@pytest.mark.slow
def test_an_encoder_is_fetched_once_and_equal_tensor_for_tensor(served, tmp_path):
    place, build, made = served
    first = build("tu-resnet10t")
    digest = hashlib.sha256(place.files["timm/resnet10t.c3_in1k/model.safetensors"]).hexdigest()
    assert first.returncode == 0, first.stderr
    assert f"timm/resnet10t.c3_in1k@{COMMIT[:8]}, sha256 {digest[:12]}, licence apache-2.0: " in first.stdout
    asked = [line for line in place.asked if not line.startswith("HEAD")]
    assert asked == ["GET timm/resnet10t.c3_in1k/model.safetensors"]
    built = safetensors.torch.load_file(tmp_path / "encoder.safetensors")
    given = made["timm/resnet10t.c3_in1k/model.safetensors"]
    same = [key for key in given if f"model.{key}" in built and torch.equal(built[f"model.{key}"], given[key])]
    assert len(same) == len(built) and {*given} - {*same} == {"fc.weight", "fc.bias"}
    again = build("tu-resnet10t")
    assert place.asked == [] and again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    one = build("tu-resnet10t", channels=1)  # the first layer is made to fit
    assert one.returncode == 0 and "from scratch" not in one.stdout


@pytest.mark.slow
def test_an_encoder_of_smp_brings_its_normalisation(served, tmp_path):
    place, build, made = served
    first = build("resnet18")
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1].endswith("[127.5, 63.75, 31.875]")
    built = safetensors.torch.load_file(tmp_path / "encoder.safetensors")
    given = made["smp-hub/resnet18.imagenet/model.safetensors"]
    assert all(torch.equal(built[key], given[key]) for key in given)
    build("resnet18")
    assert place.asked == []


@pytest.mark.slow
def test_what_the_hub_has_not_or_sends_damaged_is_refused_in_one_line(served, tmp_path):
    place, build, _ = served
    whole = dict(place.files)
    place.files = {}
    gone = build("tu-resnet10t")
    assert gone.returncode == 1 and gone.stderr.count("\n") == 1 and "could not be fetched (HTTP 404)" in gone.stderr
    place.files, place.wrong = whole, True
    wrong = build("tu-resnet10t")
    assert "came damaged, and is deleted" in wrong.stderr and "Traceback" not in wrong.stderr
    place.wrong, place.cut = False, True
    cut = build("tu-resnet10t")  # the rest is asked for
    assert cut.returncode == 0 and [line.split()[0] for line in place.asked].count("GET") == 2
    blob = next((tmp_path / "cache").rglob("model.safetensors")).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\xff")  # a disk that forgets
    assert "came damaged, and is deleted" in build("tu-resnet10t").stderr
    assert build("tu-resnet10t").returncode == 0


@pytest.mark.slow
def test_without_a_network_it_is_one_line_and_soon(served):
    import time

    _, build, _ = served
    start = time.monotonic()
    lost = build("tu-resnet10t", HF_ENDPOINT="http://127.0.0.1:9")
    assert time.monotonic() - start < hub.PATIENCE + 30  # which is mostly the start of Python
    assert lost.returncode == 1 and "could not be fetched" in lost.stderr.splitlines()[-1]
    assert "Retry" not in lost.stdout + lost.stderr and len(lost.stderr.splitlines()) == 1


def test_without_a_network_nothing_is_imported_for_seconds(tmp_path):
    for other in ("timm--vit_small_patch16_224.augreg_in1k", "smp-hub--resnet18.imagenet"):  # do not serve
        (tmp_path / "hub" / f"models--{other}").mkdir(parents=True)
    script = "import sys; from comp.config import Model; from comp.errors import Refused; from comp.model import hub\n"
    script += "try: hub.find_weights(Model(encoder='tu-efficientnet_b3', encoder_weights='imagenet'))\n"
    script += "except Refused as refused: print(refused, 'torch' in sys.modules, 'timm' in sys.modules)"
    env = {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "no_proxy": "*"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | env)
    assert (
        run.stdout.startswith("model.encoder_weights: imagenet could not be fetched (") and "False False" in run.stdout
    ), run


def test_without_a_network_what_may_be_here_is_looked_for(tmp_path, monkeypatch):
    """The hub is asked first only where no file of the encoder can be here, of all that timm and smp know."""
    import huggingface_hub.constants
    import segmentation_models_pytorch as smp
    import timm

    def ask():
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub.utils, "get_session", ask)
    monkeypatch.setattr(hub, "find_repository", lambda _: None)  # what comes next
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    known = {f"tu-{name}": timm.get_pretrained_cfg(name).hf_hub_id for name in timm.list_pretrained()}
    known |= {
        name: settings["repo_id"]
        for name, about in smp.encoders.encoders.items()
        for settings in (about.get("pretrained_settings") or {}).values()
        if "repo_id" in settings
    }
    assert len(known) > 1000
    for encoder, repository in known.items():
        if repository:
            folder = tmp_path / f"models--{repository.replace('/', '--')}"
            folder.mkdir(exist_ok=True)
            hub.find_weights(Model(encoder=encoder, encoder_weights="imagenet"))
            folder.rmdir()


def test_a_kernel_finds_what_was_sent_along(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "KAGGLE_INPUT", tmp_path)
    place = tmp_path / "datasets/me/weights"
    place.mkdir(parents=True)
    for name in (f"timm--resnet10t.c3_in1k--{COMMIT}--model.safetensors", "smp-hub--resnet18.imagenet--x--config.json"):
        (place / name).write_bytes(b"bytes")
    found = hub.find_repository(Model(encoder="tu-resnet10t", encoder_weights="imagenet"))
    assert hub.fetch(found, "model.safetensors").name.startswith("timm--resnet10t")


@pytest.mark.parametrize(
    ("encoder", "weights", "problem"),
    [
        ("tu-resnet10t", "imagenot", "resnet10t has no 'imagenot' on the hub; there are c3_in1k, none"),
        ("tu-resnet18", "a1_in1", "did you mean 'a1_in1k'"),
        ("resnet18", "imagenot", "did you mean 'imagenet'"),
        ("tu-test_vit5", "imagenet", "has no 'imagenet'"),
        ("tu-gcvit_tiny", "imagenet", "has no 'in1k' on the hub; there are none"),  # timm has it from elsewhere
    ],
)
def test_unknown_weights_are_refused(encoder, weights, problem):
    with pytest.raises(Refused) as refused:
        hub.find_repository(Model(encoder=encoder, encoder_weights=weights))
    assert problem in str(refused.value)


def test_files_and_none_are_no_repository():
    for weights in ("none", "a/b.safetensors"):
        assert hub.files_to_send(Model(encoder_weights=weights)) == {}
