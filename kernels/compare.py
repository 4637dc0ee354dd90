"""Train several recipes, or values of one setting, on the same folds; leave one table and one picture.

    python kernels/compare.py --competition mars --recipes default mars-a mars-b-unet --fold 0 --time-budget 5m
    python kernels/compare.py --competition mars --vary optimizer.lr 3e-4 1e-3 3e-3 --fold 0 --time-budget 2m
    python kernels/compare.py --competition mars --recipes default mars-a --time-budget 30m --on kaggle

Each variant is a run like any other, runs/<competition>/<variant>/, so the same command goes on where it
stopped. The comparison lies in runs/<competition>/compare-<name>/: table.csv, curves.png and report.html.
"""

import argparse
import math
import re
import time
from pathlib import Path

import pandas as pd

from comp import cli


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("--recipes", nargs="+", help="names that ship, or .toml files")
    parser.add_argument("--vary", nargs="+", metavar=("KEY", "VALUE"), help="one setting, and the values to try")
    parser.add_argument("--fold", default="0", help="fold numbers such as 0,1, or all (default: 0)")
    parser.add_argument("--time-budget", type=cli.duration, help="such as 5m, for each variant and fold")
    parser.add_argument("--workers", type=int, help="processes that augment (default: 0 on a CPU)")
    return parser


def main(args: argparse.Namespace) -> int:
    variants = configurations(args)

    from comp import batches, demo, device, fit, markup, page, report, runs

    chosen = device.choose(args.device)
    workers = batches.default_workers(chosen.device) if args.workers is None else args.workers
    rows, histories = [], {}
    for name, config in variants.items():
        if config.competition.name == "demo":
            demo.ensure(args.input)
        data = runs.data(config, args.input, args.runs)
        print(f"\n{name}, on {chosen}")
        done = []
        for number in cli.fold_numbers(args.fold, config.folds.count):
            deadline = time.monotonic() + (args.time_budget or math.inf)
            folder = args.runs / config.competition.name / name
            try:
                done.append(runs.train_fold(config, data, number, folder, chosen, workers, deadline))
            except fit.Interrupted:
                print("interrupted; the same command goes on from here")
                return 130
        scores = pd.Series([fold.metrics["score"] for fold in done])
        rows.append(
            {
                "run": name,
                "score": scores.mean(),
                "std": scores.std() if len(scores) > 1 else None,
                "mean IoU": pd.Series([fold.metrics["mean_iou"] for fold in done]).mean(),
                "epochs": sum(fold.metrics["epochs"] for fold in done) / len(done),
                "seconds": sum(fold.metrics["seconds"] for fold in done) / len(done),
                "images/s": sum(fold.metrics["images_per_second"] for fold in done) / len(done),
                "M parameters": done[0].metrics.get("parameters", 0) / 1e6,
            }
        )
        histories[name] = pd.read_csv(done[0].folder / "history.csv").to_dict("records")

    competition = next(iter(variants.values())).competition
    folder = args.runs / competition.name / f"compare-{comparison_name(args)}"
    table = pd.DataFrame(rows).sort_values("score", ascending=False)
    metric = done[0].metrics["metric"]
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "table.csv", index=False)
    report.side_by_side(histories, folder / "curves.png", f"{competition.name}: {metric}")
    cells = table.fillna("–").values.tolist()
    shown = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in cells]
    sections = [
        ("Result", markup.table(list(table.columns), shown)),
        ("Curves", markup.picture(folder / "curves.png", "score over time and over epochs")),
    ]
    page.write(folder / "report.html", f"{competition.title or competition.name}: {len(table)} runs", sections, metric)
    print(f"\n{metric}, fold {args.fold}\n{table.to_string(index=False, float_format='{:.4g}'.format)}\n\n{folder}")
    return 0


def configurations(args: argparse.Namespace) -> dict[str, "cli.configs.Config"]:
    """The runs to compare, by name, each with its configuration. Raises Refused."""
    if bool(args.recipes) == bool(args.vary):
        raise cli.Refused("name --recipes to compare, or --vary KEY VALUE VALUE")
    if args.recipes:
        loaded = [cli.configs.load(args.competition, recipe, args.overrides) for recipe in args.recipes]
        return {config.recipe: config for config in loaded}
    key, *values = args.vary
    if len(values) < 2:
        raise cli.Refused(f"--vary {key}: give two values or more")
    base = cli.config(args).recipe
    return {
        f"{base}-{key.rpartition('.')[2]}-{re.sub(r'[^A-Za-z0-9.]+', '_', value)}": cli.configs.load(
            args.competition, args.recipe, [*args.overrides, f"{key}={value}"]
        )
        for value in values
    }


def comparison_name(args: argparse.Namespace) -> str:
    given = args.run or (args.vary[0] if args.vary else "-".join(Path(recipe).stem for recipe in args.recipes))
    return re.sub(r"[^A-Za-z0-9._-]+", "_", given)[:80]


def jobs(args: argparse.Namespace) -> list:
    """One kernel, which leaves all the runs."""
    from comp import elsewhere, runs

    variants = configurations(args)
    config = next(iter(variants.values()))
    place, name = args.runs / config.competition.name, f"compare-{comparison_name(args)}"
    numbers = cli.fold_numbers(args.fold, config.folds.count)
    return [
        elsewhere.Job(
            entry=Path(__file__),
            arguments=cli.arguments_but("--workers"),
            name=f"{config.competition.name}-{name}",
            config=config,
            input=args.input,
            runs=args.runs,
            leaves=[place / run / f"fold-{number}" / runs.METRICS for run in variants for number in numbers]
            + [place / name / "report.html"],
            weights=[one.model.encoder_weights for one in variants.values()],
        )
    ]


if __name__ == "__main__":
    cli.entry(arguments(), main, jobs)
