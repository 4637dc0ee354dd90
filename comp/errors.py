"""What a user is told when something does not fit."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial

LONGEST = 1000  # characters of a line


class Refused(ValueError):
    """Bad input, told in one line: which file, key, sample or row, and what would fit.

    Entry scripts print the line and end with exit status 2; every file it leaves is whole."""

    def __init__(self, line: str):
        # A worker process puts its traceback before it, and what it quotes may hold line breaks, escapes, a megabyte.
        line = line.rpartition("comp.errors.Refused: ")[2].strip()
        line = line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 4 :]}"
        super().__init__("".join(char if char.isprintable() else " " for char in line))


print_once = cache(partial(print, flush=True))  # for what concerns many batches or samples


@contextmanager
def spare_what_is_trained(made: str) -> Iterator[None]:
    """Around what is only looked at: an error there is printed, but Refused, and the system's, such as a full disk."""
    try:
        yield
    except Exception as error:
        if isinstance(error, Refused) or (isinstance(error, OSError) and error.errno is not None):
            raise
        print(f"{made} could not be made ({type(error).__name__}: {' '.join(str(error).split())[:300]})", flush=True)


def did_you_mean(name: str, known: list[str]) -> str:
    """The end of a refusal: the known name that is meant, or the first of those that there are."""
    close = difflib.get_close_matches(name, known, n=1)
    shown = ", ".join(known[:32]) + (", …" if len(known) > 32 else "")
    return f"; did you mean {close[0]!r}?" if close else f"; there are {shown}"
