"""Where the time of a training epoch goes.

    uv run tests/benchmarks/epoch_profile.py
    uv run tests/benchmarks/epoch_profile.py --competition mars --set model.encoder=resnet34

Times are on the wall, by the parts of comp/fit.py, then by torch's own operations. On a GPU, which works behind
the program's back, the second table is the one to read."""

import cProfile
import pstats
import tempfile
from pathlib import Path

import numpy as np
import torch.profiler

from comp import cli, device
from comp.data import arrays, demo
from comp.data.folds import TrainingData
from comp.train import fit

# The parts of an epoch, by the end of the file and the function that holds each.
PARTS = {
    "samples read and augmented": ("batches.py", "__getitem__"),
    "mixed, and brought to the device": ("augment.py", "mix_batch"),
    "forward": ("segmenter.py", "forward"),
    "loss": ("losses.py", "compute"),
    "backward": ("_tensor.py", "backward"),
    "optimizer": ("grad_scaler.py", "step"),
    "averaged weights": ("model_ema.py", "apply_update_"),
    "validation": ("fit.py", "evaluate"),
    "checkpoints": ("runs.py", "save_checkpoint"),
    "weights written": ("segmenter.py", "save_model"),
}


class Repeated(TrainingData):
    """An epoch of rows that occur more than once; `folds` are these rows, of which a quarter validates."""

    def rows(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        return self.folds, self.folds[: len(self.folds) // 4]


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--images", type=int, default=480, help="images an epoch")
    args = parser.parse_args()
    settings = cli.configs.load_config(args.competition, args.recipe, [*args.overrides, "epochs=1"])
    chosen = device.choose_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        if settings.competition.name == "demo":
            demo.ensure_demo(args.input)
        split = arrays.load_train(settings.competition, args.input)
        index = arrays.build_index(split, settings.competition)
        rows = np.resize(np.arange(len(split.ids)), args.images)

        def epoch(name: str) -> None:
            (Path(folder) / name).mkdir()
            fit.fit(Repeated(settings, split, index, rows), 0, Path(folder) / name, device.Machine(chosen))

        epoch("warm-up")
        wall = cProfile.Profile()
        wall.runcall(epoch, "parts")
        with torch.profiler.profile() as operations:
            epoch("operations")
    print(f"\n{chosen}; workers 0; {args.images} images, {args.images // 4} to validate on\n")
    functions = {(Path(file).name, name): times for (file, _, name), times in pstats.Stats(wall).stats.items()}
    whole = functions["fit.py", "fit"][3]
    for part, where in PARTS.items():
        calls, _, _, seconds, _ = functions.get(where, (0, 0, 0, 0.0, {}))
        print(f"{part:36}{seconds:8.2f} s{seconds / whole:8.1%}{calls:8} calls")
    print(f"{'all, with making the network':36}{whole:8.2f} s (validation's forward is in both)\n")
    by = "self_device_time_total" if chosen.device.type == "cuda" else "self_cpu_time_total"
    print(operations.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=44))


if __name__ == "__main__":
    main()
