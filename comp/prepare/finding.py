"""What `layouts`, `build` and `audit` report as odd."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One odd thing about one sample or file."""

    id: str
    finding: str  # its kind
    detail: str
    group: str = ""  # the first sample of those that belong together, "test/…" for a test sample
