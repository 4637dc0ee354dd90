"""What `layouts`, `build` and `audit` report as odd."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One odd thing about one sample or file."""

    id: str  # of a test sample "test/…"
    finding: str  # its kind
    detail: str
    group: str = ""  # the first sample of those that belong together
