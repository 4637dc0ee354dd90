"""Train one fold of a competition, or all of them.

    python kernels/train_fold.py --fold 0                       # the demo competition; no data needed
    python kernels/train_fold.py --competition mars --fold all
    python kernels/train_fold.py --competition mars --fold 0 --time-budget 10m --set model.encoder=resnet34

Leaves runs/<competition>/<run>/fold-<k>/: model.safetensors, oof.npz, history.csv, metrics.json and
pictures. The same command again goes on where it stopped.
"""

import argparse
import time

from comp import cli


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("--fold", required=True, help="a fold's number, or all")
    parser.add_argument("--time-budget", type=cli.duration, help="such as 10m: training ends in time (per fold)")
    parser.add_argument("--workers", type=int, help="processes that augment (default: by the number of cores)")
    return parser


def main(args: argparse.Namespace) -> int:
    config = cli.config(args)
    numbers = fold_numbers(args.fold, config.folds.count)
    run_folder = args.runs / config.competition.name / cli.run_names(args, config)[0]

    from comp import batches, demo, device, fit, runs  # after the configuration is known to be sound

    if config.competition.name == "demo":
        from comp import demo

        demo.ensure(args.input)
    chosen = device.choose(args.device)
    data = runs.data(config, args.input, args.runs)
    print(f"{config.competition.title or config.competition.name}: {len(data.split.ids)} pictures, on {chosen}")
    workers = batches.default_workers() if args.workers is None else args.workers
    done, started = [], cli.STARTED
    for number in numbers:
        deadline = started + args.time_budget if args.time_budget else None
        try:
            done.append(runs.train_fold(config, data, number, run_folder, chosen, workers, deadline))
        except fit.Interrupted:
            print("interrupted; the same command goes on from here")
            return 130
        started = time.monotonic()
    if len(done) > 1:
        print(f"\n{runs.summary(done, config)}")
    return 0


def fold_numbers(text: str, count: int) -> list[int]:
    if text == "all":
        return list(range(count))
    if not text.isdigit() or int(text) >= count:
        raise cli.Refused(f"--fold {text}: there are folds 0 to {count - 1}, and all")
    return [int(text)]


if __name__ == "__main__":
    cli.entry(main, arguments())
