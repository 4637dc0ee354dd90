"""The HTML report: whole, escaped, alone, and without a fault in a real browser at phone width."""

import base64
import csv
import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comp import config, files, markup, metrics, page, report, sheets
from comp.errors import Refused

NASTY = "<script>alert(1)</script> & \"a very long name, with'quotes'\""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def competition(tmp_path: Path, classes: int) -> config.Config:
    names = [NASTY, *(f"class number {k}" for k in range(1, classes))]
    toml = tmp_path / "own.toml"
    toml.write_text(f'name = "own"\ntitle = "Drawn & < pictures"\nclasses = {json.dumps(names)}\n')
    return config.load(str(toml))


def make_run(tmp_path: Path, classes: int = 3, folds: int = 2) -> Path:
    """A run's folder as training leaves it, with pictures of noise."""
    chosen, rng = competition(tmp_path, classes), np.random.default_rng(0)
    run = tmp_path / "runs" / "own" / "a-run-with-a-long-name"
    files.write_text(run / "config.json", chosen.model_dump_json())
    files.write_text(run / "command.txt", f"python kernels/train_fold.py --fold all --set a={'x' * 300}\n")
    names = chosen.competition.classes
    images = rng.integers(0, 256, (6, 24, 40, 3), dtype=np.uint8)
    truths = rng.integers(0, classes, (6, 24, 40), dtype=np.uint8)
    guesses = np.where(rng.random(truths.shape) < 0.7, truths, 0).astype(np.uint8)
    for k in range(folds):
        folder, ended = run / f"fold-{k}", "early stop" if k else "all epochs"
        counts = metrics.confusion(truths, guesses, classes)
        facts = metrics.scores(counts, names, chosen.competition.metric)
        facts |= {"fold": k, "best_epoch": 2, "epochs": 3, "ended": ended, "seconds": 75.5, "images_per_second": 9.0}
        files.write_json(folder / "metrics.json", facts | {"device": "cpu", "confusion": counts.sum(0).tolist()})
        columns = {"epoch": [1, 2, 3], "lr": [0.1, 0.2, 0.1], "train_loss": [3, 2, "nan"], "valid_loss": [3, 2, 2]}
        write_history(folder / "history.csv", columns | {"score": [0.1, 0.4, 0.3]})
        scores = rng.random(6)
        rows, labels = report.choose(scores)
        cases = [f"{label}: {NASTY}" for label in labels]
        report.examples(images[rows], truths[rows], guesses[rows], cases, scores[rows], names, folder / "examples.png")
    frames = {f"epoch {k}": guesses[:2] for k in range(12)}
    report.filmstrip(images[:2], truths[:2], frames, ["a", "b"], names, run / "fold-0" / "filmstrip.png")
    draws, draw_masks = np.stack([images[:2]] * 5, 1), np.stack([truths[:2]] * 5, 1)
    report.samples(images[:2], truths[:2], draws, draw_masks, ["a", "b"], names, run / "samples.png")
    return run


def write_history(path: Path, columns: dict) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("many"), classes=30)


def test_the_report_holds_every_section_and_the_figures(run):
    path = page.run_page(run)
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Result", "Folds", "Classes", "Curves", "Confusion", "Best, median and worst cases",
        "How predictions changed", "Augmented samples", "Command and configuration",
    ]  # fmt: skip
    facts = json.loads((run / "fold-0" / "metrics.json").read_text())
    assert f"{facts['score']:.4f}" in text and "early stop after 3" in text and "2 min 31 s" in text
    assert "best 0.4000 in epoch 2" in text and "--fold all" in text and "model.encoder = &quot;resnet18&quot;" in text
    assert path == run / "report.html" and not list(run.glob(".*report*"))


def test_text_is_escaped_and_nothing_comes_from_outside(run):
    text = page.run_page(run).read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import\s+(\S+)""", text)
    assert links and all(target.startswith(("data:", "#")) for found in links for target in found if target)
    assert "default-src 'none'" in text and not re.search(r"https?://", text)


def test_sections_of_the_caller_and_missing_pictures(run, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    for picture in bare.rglob("*.png"):
        picture.unlink()
    (bare / "command.txt").unlink()
    audit = markup.join(markup.paragraph("110 share <one> mask"), markup.table(["id", "why"], [["7", "dark"]]))
    text = page.run_page(bare, [("Audit", audit)]).read_text(encoding="utf-8")
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == ["Result", "Folds", "Classes", "Curves", "Confusion", "Audit", "Command and configuration"]
    assert "110 share &lt;one&gt; mask" in text


def test_what_is_no_run_is_refused_in_one_line(run, tmp_path):
    with pytest.raises(Refused, match=r"config\.json"):
        page.run_page(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    write_history(broken / "fold-1" / "history.csv", {"epoch": ["one"]})
    with pytest.raises(Refused, match=r"fold-1.history\.csv: not a training history"):
        page.run_page(broken)
    write_history(broken / "fold-1" / "history.csv", {"epoch": [1, 2]})
    with pytest.raises(Refused, match="lacks"):
        page.run_page(broken)
    for file in broken.glob("fold-*/metrics.json"):
        file.unlink()
    with pytest.raises(Refused, match="no finished fold"):
        page.run_page(broken)
    assert not (broken / "report.html").exists() or "Result" in (broken / "report.html").read_text()


def test_a_sheet_is_read_back_as_it_was_drawn(tmp_path):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 400, 8, 1), dtype=np.uint8)
    masks = rng.integers(0, 200, (2, 400, 8), dtype=np.uint8)
    names = [f"_{k}" for k in range(200)]
    report.examples(images, masks, masks, ["a", "é"], [0.25, 1], names, tmp_path / "e.png", ignore=255)
    sheet = sheets.read(tmp_path / "e.png")
    assert sheet.columns == ["picture", "truth", "prediction", "where they differ"]
    assert [caption for caption, _ in sheet.rows][1].startswith("é · 1.0000 · 0.0 %")
    assert sheet.legend[1] == ("_1", "#e69f00") and sheet.legend[-1] == ("not scored", "#ffffff")
    truth = sheet.rows[0][1][1]
    assert truth.shape == (320, 6, 3)
    assert {tuple(c) for c in truth.reshape(-1, 3)} <= {tuple(c) for c in report.colours(200)}
    for data in re.findall(r'src="data:image/png;base64,([^"]+)" alt="truth', markup.sheet(tmp_path / "e.png", "e"))[
        :1
    ]:
        with Image.open(io.BytesIO(base64.b64decode(data))) as kept:
            assert (np.asarray(kept.convert("RGB")) == truth).all()
    Image.new("RGB", (9, 9)).save(tmp_path / "plain.png")
    assert sheets.read(tmp_path / "plain.png") is None
    assert "<img" in markup.sheet(tmp_path / "plain.png", "p")


@pytest.mark.parametrize("y", [[0.5], [1.0, float("nan"), 3.0], [2.0, 2.0], [-1e-9, 1e9], [float("nan")], []])
def test_charts_take_any_values(y):
    line = markup.Line("a < b", range(len(y)), y, "#0072b2", best=0 if y else None, stopped=bool(y))
    drawn = markup.chart("score & loss", [line])
    assert "score &amp; loss" in drawn and "nan" not in drawn.replace("nothing finite", "")
    assert ("<svg" in drawn) == any(np.isfinite(y))
    assert all(-1 <= float(number) <= 400 for number in re.findall(r'c[xy]="([^"]+)"', drawn))


@pytest.mark.skipif(not BROWSER, reason="no chromium or chrome is installed")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_finds_no_fault(many_classes, tmp_path, width, scheme):
    path = page.run_page(many_classes)
    with Browser(tmp_path / "profile") as browser:
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.call(f"{domain}.enable")
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.call("Page.navigate", url=path.as_uri())
        browser.until("Page.loadEventFired")
        found = browser.value(
            """(async () => {
                for (const folded of document.querySelectorAll("details")) folded.open = true;
                const slider = document.querySelector("input[type=range]");
                slider.value = 0.2; slider.dispatchEvent(new Event("input"));
                await Promise.all([...document.images].map(image => image.decode()));
                return {wide: document.scrollingElement.scrollWidth - innerWidth, inner: innerWidth,
                        images: document.images.length, paper: getComputedStyle(document.body).backgroundColor,
                        opacity: getComputedStyle(document.querySelector(".over img")).opacity};
            })()"""
        )
        assert found["wide"] <= 0 and found["inner"] == width
        assert found["images"] > 60 and found["opacity"] == "0.2"
        assert found["paper"] == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 29)")
        requested = [event["params"]["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
        assert [url for url in requested if not url.startswith("data:")] == [path.as_uri()]
        faults = browser.seen("Runtime.exceptionThrown") + browser.seen("Runtime.consoleAPICalled")
        assert faults + browser.seen("Log.entryAdded") == []


class Browser:
    """A headless browser, spoken to over a pair of pipes: JSON messages that end in a zero byte."""

    def __init__(self, profile: Path):
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()

        def wire() -> None:  # the browser reads from descriptor 3 and writes to 4
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        options = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage"
        command = [BROWSER, *options.split(), "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, preexec_fn=wire, pass_fds=(3, 4), **quiet)
        os.close(commands)
        os.close(answers)
        self._events: list[dict] = []
        self._rest, self._number, self._session = b"", 0, None
        self._alarm = threading.Timer(90, self._process.kill)  # then the pipe ends, and the test with it

    def __enter__(self) -> "Browser":
        self._alarm.start()
        pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        target = pages[0]["targetId"] if pages else self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        self._alarm.cancel()
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **params: object) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def value(self, expression: str) -> dict:
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"]["value"]

    def until(self, method: str) -> None:
        while not self.seen(method):
            self._events.append(self._next())

    def seen(self, method: str) -> list[dict]:
        return [event for event in self._events if event.get("method") == method]

    def _next(self) -> dict:
        while b"\0" not in self._rest:
            more = os.read(self._in, 1 << 16)
            assert more, "the browser ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)
