"""Make a competition's npz from its download, and audit what is in it.

    python kernels/prepare.py --competition tgs-salt --source DIR    # -> input/tgs-salt.npz, then its audit
    python kernels/prepare.py --competition tgs-salt                 # the same of what it downloads from Kaggle
    python kernels/prepare.py --competition mars                     # the audit of an npz that is there

Where the TOML's section `source` does not say what DIR holds, it is VOC's folders and lists; images/ with masks/ or
annotations/trimaps/, and test_images/; or train/, val/ and test/ with such folders in them. The audit goes to
runs/<competition>/audit."""

import argparse
import re
import shutil
from pathlib import Path

from comp import cli, files


def main(arguments: argparse.Namespace) -> None:
    competition, folder = cli.config(arguments).competition, arguments.input

    from comp.data import arrays
    from comp.prepare import build

    path, source = folder / competition.file, arguments.source
    if not source and competition.kaggle and not path.exists():
        from comp.kaggle.api import download_competition

        came = download_competition(competition.kaggle, folder)
        if (came / path.name).exists():  # arrays already
            (came / path.name).rename(path)
        else:
            source = came
    if source:
        build.prepare(competition, source, path, arguments.size or competition.source.size)
        keep_sample(source, folder / (competition.submission.sample or f"{competition.name}-{arrays.SAMPLE}"))
    from comp.prepare import audit  # which takes seconds

    train = arrays.load_train(competition, folder)
    test = arrays.load_test(competition, folder) if arrays.has_test(competition, folder, train) else None
    index = arrays.build_index(train, competition)
    found = build.stored_findings(arrays.find_npz(competition.file, folder))
    found += audit.audit(competition, train, index, test)
    out = arguments.runs / competition.name / "audit"
    print(audit.write_audit(out, competition, train, index, test, found))
    print(f"{out}: audit.csv, audit.txt, audit.png")


def keep_sample(source: Path, target: Path) -> None:
    """Copy a download's sample submission to where submissions are compared with it, unless one is there."""
    there = sorted(source.glob("*sample*submission*.csv"))
    if len(there) == 1 and not target.exists():
        with files.atomic_write(target) as beside:
            shutil.copyfile(there[0], beside)
        print(f"{target}: the sample submission")


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})(?:[x×](\d{1,4}))?", text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not height or not width:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write height x width, as in 256x256")
    return height, width


def jobs(arguments: argparse.Namespace) -> list:
    raise cli.Refused(
        "it reads folders of this machine and runs here; train_fold.py --on kaggle then takes the npz along"
    )


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("--source", type=Path, help="folder of the download (default: the npz, or what Kaggle has)")
    parser.add_argument("--size", type=size, help="height and width of the arrays (default: the competition's)")
    cli.entry(parser, main, jobs)
