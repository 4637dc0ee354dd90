"""The HTML report: whole, escaped, alone, and without a fault in a real browser at phone width."""

import base64
import csv
import fcntl
import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import count_margins
from PIL import Image

from comp import config, files
from comp.data.arrays import Split
from comp.errors import Refused
from comp.model import metrics
from comp.report import figures
from comp.train import pages
from comp.train.runs import read_fold

NASTY = "<script>alert(1)</script> & \"a very long name, with'quotes'\""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def competition(tmp_path: Path, classes: int) -> config.Config:
    names = [NASTY, *(f"class number {k}" for k in range(1, classes))]
    toml = tmp_path / "own.toml"
    toml.write_text(f'name = "own"\ntitle = "Drawn & < pictures"\nclasses = {json.dumps(names)}\n')
    return config.load_config(str(toml))


def make_run(tmp_path: Path, classes: int = 3, folds: int = 2) -> Path:
    """A run's folder as training leaves it, with figures of noise."""
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
        counts = metrics.count_confusion(torch.from_numpy(truths), torch.from_numpy(guesses), classes).sum(0)
        margins = count_margins(truths, guesses, classes)
        facts = metrics.scores(margins, names, chosen.competition.metric)
        facts |= {
            "fold": k,
            "train_images": 9,
            "best_epoch": 2,
            "epochs": 3,
            "ended": ended,
            "seconds": 75.5,
            "images_per_second": 9.0,
        }
        files.write_json(
            folder / "metrics.json",
            facts | {"device": "cpu", "confusion": counts.tolist(), "margins": margins.sum(0).tolist()},
        )
        columns = {
            "epoch": [1, 2, 3],
            "seconds": [9, 18, 27],
            "lr": [0.1, 0.2, 0.1],
            "train_loss": [3, 2, "nan"],
            "valid_loss": [3, 2, 2],
        }
        write_history(folder / "history.csv", columns | {"score": [0.1, 0.4, 0.3]})
        scores = rng.random(6)
        rows, labels = figures.choose_cases(scores)
        split = Split(images, truths, np.array([NASTY, *"abcde"]), None, None)
        drawn = figures.case_rows(split, zip(rows, guesses[rows], labels, scores[rows], strict=True))
        figures.draw_sheet(drawn, names, folder / "examples.png")
        frames = {f"epoch {k}": [(None, guess) for guess in guesses[:2]] for k in range(8)}
        drawn = figures.series_rows(split, [0, 1], frames)
        figures.draw_sheet(drawn, names, folder / "filmstrip.png")
        draws = {f"augmented {k}": [(images[k], truths[k])] * 2 for k in range(5)}
        figures.draw_sheet(figures.series_rows(split, [0, 1], draws), names, folder / "samples.png")
        history = read_fold(folder).history()
        figures.draw_curves(
            history, folder / "curves.png", best_epoch=2, stopped=None if k else "early stop", title=NASTY
        )
        figures.draw_confusion(counts.numpy(), margins.sum(0), names, folder / "confusion.png")
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


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def test_the_report_holds_every_section_and_the_figures(run):
    path = pages.write_run_page(run)
    text = path.read_text(encoding="utf-8")
    assert headings(text) == [
        "Result", "Classes, all folds as one", "All folds", "Fold 0", "Fold 1", "Command and configuration"
    ]  # fmt: skip
    for heading in list(pages.FIGURES.values())[:5]:
        times = 3 if heading in ("Curves", "Confusion") else 2
        assert text.count(f"<h3>{heading}</h3>") == times
    facts = json.loads((run / "fold-0" / "metrics.json").read_text())
    assert f"{facts['score']:.4f}" in text and "early stop" in text and "0:01:16" in text
    assert "--fold all" in text and "&#34;encoder&#34;: &#34;resnet18&#34;" in text
    assert path == run / "report.html" and not list(run.glob(".*report*"))


def test_the_figures_on_the_page_are_those_that_the_run_left(run):
    text = pages.write_run_page(run).read_text(encoding="utf-8")
    shown = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", text)]
    assert sorted(shown) == sorted(path.read_bytes() for path in run.rglob("*.png")) and len(shown) == 12


def test_text_is_escaped_and_nothing_comes_from_outside(run):
    text = pages.write_run_page(run).read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import\s+(\S+)""", text)
    assert links and all(target.startswith(("data:", "#")) for found in links for target in found if target)
    assert "default-src 'none'" in text and not re.search(r"https?://", text)


def test_the_audit_is_on_the_page_and_what_is_missing_is_not(run, tmp_path):
    bare = tmp_path / "own" / "bare"
    shutil.copytree(run, bare)
    for picture in bare.rglob("*.png"):
        picture.unlink()
    (bare / "command.txt").unlink()
    shutil.rmtree(bare / "fold-1")
    files.write_text(bare.parent / "audit" / "audit.txt", "110 share <one> mask {body}")
    Image.new("RGB", (9, 9)).save(bare.parent / "audit" / "audit.png")
    text = pages.write_run_page(bare).read_text(encoding="utf-8")
    assert headings(text)[2:] == ["What is odd in the data", "Command and configuration"]
    assert "110 share &lt;one&gt; mask {body}" in text and text.count("<img") == 1


def test_what_is_no_run_is_refused_in_one_line(run, tmp_path):
    with pytest.raises(Refused, match=r"config\.json"):
        pages.write_run_page(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(run, broken, ignore=shutil.ignore_patterns("report.html"))
    for column in (["one"], [1, 2]):
        write_history(broken / "fold-1" / "history.csv", {"epoch": column})
        with pytest.raises(Refused, match=r"fold-1.history\.csv: not a training history"):
            pages.write_run_page(broken)
    shutil.copyfile(run / "fold-1" / "history.csv", broken / "fold-1" / "history.csv")
    for file in broken.glob("fold-*/metrics.json"):
        file.unlink()
    with pytest.raises(Refused, match="no finished fold"):
        pages.write_run_page(broken)
    assert not (broken / "report.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium or chrome is installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_finds_no_fault(many_classes, tmp_path, width):
    path = pages.write_run_page(many_classes)
    with Browser(tmp_path / "profile") as browser:
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.call(f"{domain}.enable")
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        browser.call("Page.navigate", url=path.as_uri())
        browser.until("Page.loadEventFired")
        found = browser.value(
            """(async () => {
                for (const folded of document.querySelectorAll("details")) folded.open = true;
                await Promise.all([...document.images].map(image => image.decode()));
                const curves = document.querySelector("img[alt=curves]").getBoundingClientRect();
                return {wide: document.scrollingElement.scrollWidth - innerWidth, inner: innerWidth,
                        images: document.images.length, curves: [curves.left, curves.right],
                        row: document.querySelector("tr").offsetHeight};
            })()"""
        )
        assert found["wide"] <= 0 and found["inner"] == width and found["images"] == 12
        assert found["row"] < 50  # no cell is broken letter by letter
        assert found["curves"][0] >= 0 and found["curves"][1] <= width  # seen whole, even on a phone
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
