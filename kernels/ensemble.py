"""Blend the folds of one or more runs into a submission, checked as Kaggle checks it.

    python kernels/ensemble.py                                    # the demo; prints its leaderboard score
    python kernels/ensemble.py --competition mars --tta d4
    python kernels/ensemble.py --competition mars --run default --run segformer
    python kernels/ensemble.py --competition mars --folds full    # the models of all images, weighted equally
    python kernels/ensemble.py --competition mars --on sandbox    # or: --on kaggle

Writes submissions/<competition>-<runs>-<hash>.csv and, beside it, a .json that says what made it."""

import argparse
import os
from pathlib import Path

from comp import cli

HEEDED = ("competition.", "predict.batch_size", "recipe=")  # of the configuration


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, runs="append")
    parser.add_argument("--folds", default="all", help="fold numbers such as 0,1, or full (default: all)")
    parser.add_argument("--tta", choices=["none", "hflip", "flips", "d4", "scales"], help="(default: each model's own)")
    parser.add_argument(
        "--decide", choices=["all", "none"], default="all", help="what follows the blend (default: all)"
    )
    parser.add_argument("--pseudo", type=float, metavar="P", help="label test images for arrays.extra, where P or more")
    parser.add_argument("--submissions", type=Path, default=Path("submissions"), help="(default: submissions)")
    return parser


def main(args: argparse.Namespace) -> int:
    config = cli.config(args)
    competition = config.competition
    names = cli.run_names(args, config)
    if args.pseudo is not None and (competition.overlap or competition.arrays.ignored is None):
        raise cli.Refused("--pseudo: needs --set competition.arrays.ignore=255 for unsure pixels, and no overlap")
    if not 0 < (args.pseudo or 0.5) < 1:
        raise cli.Refused(f"--pseudo {args.pseudo:g}: a probability between 0 and 1 would fit")

    from comp import distributed, files
    from comp.data import arrays
    from comp.device import choose_device
    from comp.ensemble.decisions import Decisions
    from comp.ensemble.make_submission import identify, predict_blend, write_pseudo_labels, write_submission
    from comp.ensemble.search import Rung, search_decisions, show_ladder
    from comp.model import metrics
    from comp.prepare import build
    from comp.report import tables
    from comp.submission.check import check_submission
    from comp.train import pages

    if distributed.local_rank() is not None:
        raise cli.Refused("one process makes the submission; start it without torchrun")
    for override in args.overrides:
        if not override.startswith(HEEDED):
            print(f"--set {override}: changes nothing here, since the models are trained; --tta can")
    found = find(args, config)
    # Each model's own by default: one that was trained without flips may tell left from right.
    tta = args.tta or "+".join(dict.fromkeys(fold.metrics["tta"] for run in found for fold in run))
    device = choose_device(args.device)
    metric = metrics.describe_metric(competition.metric)
    chosen, ladder = found, list[Rung]()
    if args.folds == "full":
        decisions = Decisions.neutral(len(names), len(competition.classes))
        print("models of all images: no image is left to score them on, so nothing is decided and runs weigh the same")
    else:
        chosen = same_folds(found, cli.fold_numbers(args.folds, found[0][0].metrics["folds"]))
        train = arrays.load_train(competition, args.input)
        index, search = arrays.build_index(train, competition), args.decide == "all"
        decisions, ladder = search_decisions(chosen, train, index, competition, device.device, search)
        print(f"{metric}, {show_ladder(ladder)}")

    in_kernel = os.environ.get("KAGGLE_KERNEL_RUN_TYPE")
    hidden = in_kernel and competition.code_competition
    folder = build.prepare_hidden_test(competition, args.input) if hidden else args.input
    test = arrays.load_test(competition, folder)
    if args.pseudo is not None:
        path = args.input / f"{competition.name}-pseudo.npz"
        blended = predict_blend(chosen, decisions.run, test, args.tta, config.predict.batch_size, device)
        write_pseudo_labels(path, blended, decisions, test, competition, args.pseudo)
        settings = f"--set competition.arrays.ignore={competition.arrays.ignore}" if args.overrides else ""
        print(f"train with it by --run pseudo --set competition.arrays.extra={path.name} {settings}")
        return 0
    made_of = identify(competition, chosen, decisions, tta, test, arrays.build_index(test, competition))
    # In a kernel it is what a code competition collects.
    path = Path(f"submission{competition.submission.ending}") if in_kernel else args.submissions / made_of["name"]
    sample = arrays.find_sample_submission(competition, args.input)
    if path.exists() and path.with_suffix(".json").exists():
        print(f"{path} is there already, made of the same models with the same settings")
        check_submission(path, competition, *test.asked, sample)
        return 0

    print(f"{len(test.ids)} images; models: {len(made_of['models'])}; test-time augmentation: {tta}; on {device}")
    blended = predict_blend(chosen, decisions.run, test, args.tta, config.predict.batch_size, device)
    count, scores = write_submission(path, blended, decisions, test, competition, sample)
    used = [rung.score for rung in ladder if rung.used]
    rungs = {rung.kind: {"score": rung.score, "used": rung.used} for rung in ladder}
    about = {"metric": metric, "out_of_fold": used[-1] if used else None, "ladder": rungs}
    if scores:
        about["leaderboard"] = scores["score"]
        print(f"\nleaderboard, since the test labels are known here\n{tables.score_table(scores)}\n")
    files.write_json(path.with_suffix(".json"), made_of | {"score": about, "sha256": files.sha256(path)})
    wanted = "as Kaggle wants it" if sample else "by the TOML alone: there is no sample submission to compare it with"
    if competition.submission.function:
        wanted = f"as {Path(competition.submission.function).name} wrote it"
        wanted += ", with the sample's header and ids" if sample and path.suffix == ".csv" else ""
    print(f"{path}: {count} rows, {path.stat().st_size:,} bytes, {wanted}")
    shown = found[0][0].folder.parent
    if len(ladder) > 1 and len(names) == 1 and chosen[0] == found[0] and not in_kernel:
        try:  # the submission is made; a folder of others, say, may not take more
            files.write_text(shown / "decisions" / "decisions.txt", f"{metric}, {show_ladder(ladder)}\n")
            print(pages.write_run_page(shown))
        except (OSError, KeyError, cli.Refused) as error:
            print(f"{shown}: no page of what was decided: {error}")
    return 0


def jobs(args: argparse.Namespace) -> list:
    """One kernel, which reads the folds' output."""
    from comp.kaggle.jobs import Job

    config = cli.config(args)
    names, competition, found = cli.run_names(args, config), config.competition.name, find(args, config)
    if args.folds != "full":  # what is missing is told here, and what is not asked for stays here
        found = same_folds(found, cli.fold_numbers(args.folds, found[0][0].metrics["folds"]))
    return [
        Job(
            entry=Path(__file__),
            arguments=cli.arguments_but(*cli.HERE),
            name=f"{competition}-{'-'.join(names)}-ensemble",
            competition=config.competition,
            input=args.input,
            runs=args.runs,
            submissions=args.submissions,
            folds=[fold for run in found for fold in run],
        )
    ]


def find(args: argparse.Namespace, config: "cli.configs.Config") -> list[list]:
    """The finished folds of each run, or the one model of all images. Raises Refused."""
    from comp.kaggle.jobs import find_kernel
    from comp.train import runs

    pattern = "full" if args.folds == "full" else "fold-*"
    folder, wanted = args.runs / config.competition.name, args.folds.split(",")
    found = [runs.find_folds(folder / name, pattern) for name in cli.run_names(args, config)]
    asked = [one for run in found for one in run if args.folds in ("all", "full") or str(one.number) in wanted]
    images = {kernel.image for one in asked if (kernel := find_kernel(one)) and kernel.image}
    if len(images) > 1:
        print(f"folds were trained in several of Kaggle's images, whose libraries differ: {', '.join(sorted(images))}")
    return found


def same_folds(found: list[list], numbers: list[int]) -> list[list]:
    """These folds of every run, in this order. Raises Refused for a missing one."""
    chosen = []
    for run in found:
        by_number = {fold.number: fold for fold in run}
        if missing := sorted({*numbers} - {*by_number}):
            there = f"--folds {','.join(map(str, by_number))}"
            raise cli.Refused(f"{run[0].folder.parent}: fold {missing[0]} is not finished; train it, or blend {there}")
        chosen.append([by_number[number] for number in numbers])
    return chosen


if __name__ == "__main__":
    cli.entry(arguments(), main, jobs)
