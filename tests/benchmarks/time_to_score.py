"""The plain recipe's ten epochs on mars, and the shipped one in a tenth of their time: validation scores of fold 0.

    uv run --group peers tests/benchmarks/time_to_score.py

Both learn from scratch. Needs input/'s mars, and about a quarter of an hour on two cores."""

import tempfile
import time
from pathlib import Path

import ladder

from comp import config, device
from comp.data.folds import load_training_data


def main() -> None:
    print(device.choose_device())
    ladder.heading()
    with tempfile.TemporaryDirectory() as folder:
        data = load_training_data(config.load_config("mars", "mars"), Path("input"), Path(folder))
        started = time.monotonic()
        scores = ladder.plain(data, float("inf"), epochs=10)
        seconds = time.monotonic() - started
        ladder.show(f"the plain recipe, {seconds:.0f} s", *scores)
        for share in (10, 5):
            row = ladder.ours(data, seconds / share, Path(folder) / str(share))
            ladder.show(f"ours, {seconds / share:.0f} s", *row)


if __name__ == "__main__":
    main()
