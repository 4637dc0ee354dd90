"""Images and masks in h5 files: image_12.h5 is "img" (128, 128, 14), mask_12.h5 "mask" (128, 128)."""

import io
import zipfile

import h5py


def read_samples(folder, part):
    for path in sorted((folder / f"{part.title()}Data/img").glob("*.h5")):
        mask = folder / "TrainData/mask" / path.name.replace("image", "mask")
        with h5py.File(path) as file:
            image = file["img"][:]
        labels = h5py.File(mask)["mask"][:] if part == "train" else None
        yield path.stem.removeprefix("image_"), image, labels, None


def write_submission(path, predictions):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for id, labels in predictions:
            data = io.BytesIO()
            with h5py.File(data, "w") as file:
                file["mask"] = labels
            archive.writestr(f"mask_{id}.h5", data.getvalue())
