"""A competition's data brought here with Kaggle's own client, and opened."""

import shutil
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from comp import files
from comp.errors import Refused
from comp.kaggle.api import not_joined
from comp.kaggle.client import Declined, call_client


def download_competition(competition: str, folder: Path) -> Path:
    """Bring a competition's data to folder/<competition>, its archives opened, unless it is there; return that folder.

    It appears whole or not at all; a download that was interrupted goes on where it was. Raises Refused where the
    competition was not joined, and where the disk has no room."""
    there, work = folder / competition, folder / f".download-{competition}"
    if there.is_dir():
        return there
    with files.lock_folder(work):
        print(f"downloads {competition} to {there}", flush=True)
        try:
            call_client("competition_download_files", competition=competition, path=str(work), quiet=False)
        except Declined as error:
            if error.status not in (403, 404):
                raise
            shutil.rmtree(work)
            raise not_joined(competition) from None
        opened = work / "opened"
        shutil.rmtree(opened, ignore_errors=True)  # of a start that was killed
        opened.mkdir()
        try:
            for file in work.glob("[!.]*.*"):
                _open_archive(file, opened) if file.suffix == ".zip" else shutil.copy(file, opened)
            while archives := list(opened.rglob("*.zip")):  # some hold others
                for file in archives:
                    _open_archive(file, file.with_suffix(""))
                    file.unlink()
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            shutil.rmtree(work)
            raise Refused(f"{competition}: came damaged ({error}); the same command downloads it again") from None
        except (NotImplementedError, RuntimeError) as error:  # another compression, a password
            raise Refused(f"{file}: Python cannot open it ({error}); open it by hand, as {there}") from None
        opened.rename(there)
        shutil.rmtree(work)
    return there


def _open_archive(path: Path, place: Path) -> None:
    """Put what a zip file holds into a folder, but for a folder of its own name around it and macOS's extra files."""
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX/")]
        size, free = sum(member.file_size for member in members), files.free_bytes(path)
        if size > free:
            raise Refused(f"{path}: opened it takes {size / 1e6:,.0f} MB; the disk has {free / 1e6:,.0f} MB free")
        if {member.filename.split("/")[0] for member in members} == {place.name}:
            place = place.parent
        with tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
            for member in members:
                archive.extract(member, place)
                bar.update(member.file_size)
