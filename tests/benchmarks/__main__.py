"""Every figure of the design in one go: training and prediction, files, time to score, memory, the pack.

    uv run --group peers python tests/benchmarks

Needs three quarters of an hour of a quiet machine; each script beside this one runs alone, too."""

import subprocess
import sys
import time
from pathlib import Path

from comp.kaggle import packing

HERE = Path(__file__).parent


def main() -> None:
    for script in ("throughput.py", "submission.py", "time_to_score.py", "scaling.py", "decisions.py", "ladder.py"):
        print(f"\n{script}", flush=True)
        subprocess.run([sys.executable, str(HERE / script)], check=False)
    print("\nthe pack")
    pack()


def pack() -> None:
    """Its size, and its start: an argument that is refused before anything big is imported."""
    entry = HERE.parent.parent / "kernels" / "train_fold.py"
    text = packing.pack(entry, ["--fold", "99"])
    imports = "import argparse, pydantic, tomllib, zipfile, runpy, pathlib"

    def seconds(*command: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True)
        return time.perf_counter() - started

    script = Path("packed.py")
    script.write_text(text, encoding="utf-8")
    try:
        own = sorted(seconds(str(script)) - seconds("-c", imports) for _ in range(5))[2]
    finally:
        script.unlink()
    print(f"{len(text) / 1000:.0f} KB (at most 400), starts in {own:.2f} s beyond importing its libraries (at most 1)")


if __name__ == "__main__":
    main()
