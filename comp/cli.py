"""What the entry scripts share: their common arguments, and one line instead of a traceback."""

import argparse
import io
import math
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from comp import config as configs
from comp.errors import Refused, did_you_mean

STARTED = time.monotonic()  # a time budget counts from here
HERE = ("--on", "--input", "--runs", "--submissions", "--device", "--workers")  # options that are about this machine
KAGGLE_LIMIT = 11.5 * 3600  # seconds; Kaggle stops a kernel after 12 hours and keeps nothing that is unfinished
MOST_WORKERS = 32


class Parser(argparse.ArgumentParser):
    """Takes no shortened options, shows a description as it stands, and says in one line what is wrong."""

    def __init__(self, description: str):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        for option in (word.partition("=")[0] for word in sys.argv[1:] if word.startswith("--")):
            if option not in (*self._option_string_actions, "--"):  # argparse would name what is missing without it
                self.exit(2, f"{self.prog}: no option {option}{did_you_mean(option, [*self._option_string_actions])}\n")
        self.exit(2, f"{self.prog}: {message}; --help shows all options\n")


def parser(description: str, runs: str = "store") -> Parser:
    """A parser with the arguments that every entry script takes; `runs="append"` lets --run be repeated."""
    made = Parser(description)
    made.add_argument("--competition", default="demo", help="a name that ships, or a .toml file (default: demo)")
    made.add_argument("--recipe", help="a name that ships, or a .toml file (default: the competition's)")
    made.add_argument("--run", action=runs, help="name of the run's folder (default: the recipe's name)")
    value = "override one value, as in model.encoder=resnet34; may be repeated"
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help=value)
    made.add_argument("--input", type=Path, default=Path("input"), help="folder of the npz (default: input)")
    made.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    made.add_argument("--device", default="auto", help="cpu, cuda:1; cuda:0,cuda:1 for several folds (default: auto)")
    return made


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --time-budget and --workers, which the scripts that train take."""
    parser.add_argument("--time-budget", type=duration, help="such as 10m: the training of each fold ends in time")
    number = f"processes that augment, 0 to {MOST_WORKERS} (default: 0 on a CPU, whose cores train)"
    parser.add_argument("--workers", type=workers, metavar="N", help=number)


def config(arguments: argparse.Namespace) -> configs.Config:
    """The configuration that the arguments name. Raises Refused."""
    return configs.load_config(arguments.competition, arguments.recipe, arguments.overrides)


def run_names(arguments: argparse.Namespace, config: configs.Config) -> list[str]:
    """The names that --run gives, or the recipe's. Raises Refused where one would leave the runs' folder."""
    given = arguments.run or config.recipe
    names = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise Refused(f"--run {name}: letters, digits, '.', '_' and '-' make a folder's name")
    return names


def fold_numbers(text: str, count: int, last: str = "all, or full") -> list[int]:
    """Folds of "0", "0,2" or "all", of which there are `count`. Refused: another; `last` ends what would fit."""
    numbers = {str(number): number for number in range(count)}
    chosen = numbers.keys() if text == "all" else {*text.split(",")}
    if not chosen <= numbers.keys():
        raise Refused(f"fold {text}: there are folds 0 to {count - 1}; write one, several as 0,1, {last}")
    return sorted(numbers[part] for part in chosen)


def duration(text: str) -> float:
    """Seconds in "90s", "10m", "1.5h" or "1h30m"; a bare number is seconds."""
    figure = r"(\d+(?:\.\d*)?|\.\d+)"
    match = re.fullmatch(f"(?:{figure}h)?(?:{figure}m)?(?:{figure}s?)?", text)
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0, 0, 0)
    if total := hours * 3600 + minutes * 60 + seconds:
        return total
    raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 90s, 10m or 1h30m")


def workers(text: str) -> int:
    """A number of processes beside the one that trains."""
    if re.fullmatch("[0-9]{1,9}", text) and int(text) <= MOST_WORKERS:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} does not fit; 0 to {MOST_WORKERS} would")


def deadline(started: float, budget: float | None) -> float:
    """When training that started then must end, a time of time.monotonic(): of its budget, or of Kaggle's limit."""
    limit = STARTED + KAGGLE_LIMIT if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") else math.inf
    return min(started + (budget or math.inf), limit)


def arguments_but(*options: str) -> list[str]:
    """The command line without these options; without `HERE`, it is as a kernel gets it."""
    left_out = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in options:
        left_out.add_argument(option)
    return left_out.parse_known_args()[1]


def command() -> str:
    """The command line with the script as it is at the repository's root, wherever it or a pack of it lies."""
    return shlex.join(["python", f"kernels/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def entry(parser: argparse.ArgumentParser, main: Callable[..., int | None], jobs: Callable | None = None) -> None:
    """Run an entry script, here or elsewhere: bad input ends it with one line and status 2, Ctrl-C with 130.

    `jobs` makes the kernels that stand for the same command in the sandbox or on Kaggle."""
    if jobs:
        where = "here; rehearsed as Kaggle would run it; on Kaggle; or put there as a notebook (default: here)"
        parser.add_argument("--on", choices=["here", "sandbox", "kaggle", "notebook"], default="here", help=where)
    _mend_surroundings()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup ignores the second
            signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that what is half written is removed
    try:
        arguments = parser.parse_args()
        if jobs is None or arguments.on == "here":
            sys.exit(main(arguments))
        from comp.kaggle.jobs import push_drafts, run_in_sandbox, run_on_kaggle

        there = {"sandbox": run_in_sandbox, "kaggle": run_on_kaggle, "notebook": push_drafts}
        sys.exit(there[arguments.on](jobs(arguments)))
    except Refused as refused:
        parser.exit(2, f"{parser.prog}: {refused}\n")
    except OSError as error:
        if error.errno is None:  # a library's own, about something else than a file
            raise
        parser.exit(2, f"{parser.prog}: {error.filename or 'writing'}: {error.strerror}\n")
    except RuntimeError as error:
        from comp import distributed

        if not distributed.is_lost_peer(error):
            raise
        parser.exit(1, f"rank {distributed.rank()}: another process of this job ended; start it again to go on\n")
    except KeyboardInterrupt:
        job = sys.modules.get("comp.distributed")  # where it is not imported yet, none was joined
        said = "interrupted; the same command goes on from what is on disk\n"
        parser.exit(130, None if job and job.rank() else said)  # of all ranks, one says so


def _mend_surroundings() -> None:
    """Keep surroundings that are not made for Python from ending this process."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook's is another, and shows everything
        sys.stdout.reconfigure(errors="replace")  # what the terminal's encoding lacks; stderr does so by itself
    if "ipykernel" not in sys.modules:
        # A notebook hands its backend to the commands it starts, where it may be missing. The style is our own.
        os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": str(Path(__file__).parent / "report/figures.mplstyle")}
    if not {"LOGNAME", "USER", "LNAME", "USERNAME"} & os.environ.keys():
        os.environ["USER"] = str(os.getuid())  # torch asks for it, and an id of a container has no name
