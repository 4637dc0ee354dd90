"""Pretrained encoders: a file, or what Hugging Face's hub has under the names of timm and segmentation-models-pytorch.

The hub's files are fetched once, into its own cache; a kernel, which has no network, gets them from a dataset."""

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from comp import files
from comp.config import Model
from comp.errors import Refused, did_you_mean

PATIENCE = 5.0  # seconds until the hub must have answered


class Weights(NamedTuple):
    """An encoder's weights: a file, and what images were normalised with, as fractions of 255."""

    path: Path
    mean: list[float]
    std: list[float]
    about: str  # for the log: where they are from, their checksum and licence


class Repository(NamedTuple):
    """What the hub has of an encoder."""

    name: str  # owner/name
    revision: str | None  # None: the newest
    licence: str
    files: tuple[str, ...]  # that are needed


def find_weights(model: Model) -> Weights | None:
    """The weights that `encoder_weights` names, fetched if need be; None where that is "none". Raises Refused."""
    if model.encoder_weights == "none":
        return None
    from huggingface_hub import constants, utils

    kind = re.split("[-_.]", model.encoder.removeprefix("tu-").removeprefix("timm-"))[0]
    other = re.compile(rf"(models--)?(timm|smp-hub)--(?!.*{re.escape(kind)})")  # whose names hold the encoder's
    here = chain(Path(constants.HF_HUB_CACHE).glob("models--*"), files.find_below_input("*--*--*"))
    if not model.encoder_weights.endswith(".safetensors") and all(other.match(path.name) for path in here):
        try:  # so that without a network it is refused at once, and not after the seconds of what is imported next
            utils.get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        except Exception as error:  # of the hub, or of the library beneath it
            why = f"{model.encoder_weights} could not be fetched ({' '.join(str(error).split())[:150]})"
            raise Refused(f"model.encoder_weights: {why}; retry, or give a .safetensors file or none") from None
    import timm

    name = model.encoder.removeprefix("tu-").removeprefix("timm-")
    known = (timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).to_dict()  # ImageNet's, where it is unknown
    if not (repository := find_repository(model)):
        local = Path(model.encoder_weights)
        path = local if local.is_file() else next(files.find_below_input(local.name), local)
        return Weights(path, known["mean"], known["std"], path.name)
    path, *others = (fetch(repository, file) for file in repository.files)
    known |= {key: value for other in others for key, value in json.loads(other.read_bytes()).items()}
    commit = path.name.split("--")[-2] if "--" in path.name else path.parent.name
    about = f"{repository.name}@{commit[:8]}, sha256 {files.sha256(path)[:12]}, licence {repository.licence}"
    about += " (not for commercial use)" if "nc" in repository.licence.split("-") else ""
    return Weights(path, known["mean"], known["std"], about)


def find_repository(model: Model) -> Repository | None:
    """The repository of `encoder_weights`; None where they are a file or none. Raises Refused for an unknown name."""
    wanted = model.encoder_weights
    if wanted == "none" or wanted.endswith(".safetensors"):
        return None
    import segmentation_models_pytorch as smp
    import timm

    name, _, tag = model.encoder.removeprefix("tu-").partition(".")
    if not model.encoder.startswith("tu-"):
        known: dict[str, Any] = smp.encoders.encoders.get(model.encoder, {}).get("pretrained_settings") or {}
    else:
        named = {one.partition(".")[2]: timm.get_pretrained_cfg(one) for one in timm.list_pretrained(f"{name}.*")}
        known = {one: about for one, about in named.items() if about and about.hf_hub_id}  # a few are elsewhere
        if wanted == "imagenet":  # stands for the default tag
            wanted = tag or getattr(timm.get_pretrained_cfg(name), "tag", wanted)
    if not (about := known.get(wanted)):
        hint = did_you_mean(wanted, [*known, "none"])
        raise Refused(f"model.encoder_weights: {model.encoder} has no {wanted!r} on the hub{hint}")
    if isinstance(about, dict):
        return Repository(about["repo_id"], about["revision"], "not stated", ("model.safetensors", "config.json"))
    return Repository(about.hf_hub_id, None, about.license or "not stated", ("model.safetensors",))


def fetch(repository: Repository, file: str) -> Path:
    """A file of a repository on this machine; its bytes are those that the hub's checksum names. Raises Refused."""
    sent = f"{repository.name.replace('/', '--')}--{repository.revision or '*'}--{file}"
    if found := next(files.find_below_input(sent), None):
        return found
    import huggingface_hub as hub

    where = f"model.encoder_weights: {repository.name}/{file}"
    asked = (repository.name, file)
    if not isinstance(path := hub.try_to_load_from_cache(*asked, revision=repository.revision), str):
        try:
            # Asked once, since the library itself tries for a minute where there is no network.
            hub.get_hf_file_metadata(hub.hf_hub_url(*asked, revision=repository.revision), timeout=PATIENCE)
            print(f"fetches {repository.name}/{file} from the hub", flush=True)
            path = hub.hf_hub_download(*asked, revision=repository.revision)
        except Exception as error:  # of the hub, of the library beneath it, of the disk
            answer = getattr(error, "response", None)
            why = f"HTTP {answer.status_code}" if answer is not None else " ".join(str(error).split())[:150]
            raise Refused(f"{where} could not be fetched ({why}); retry, or give a .safetensors file or none") from None
    blob = Path(path).resolve()  # of large files it is named by the sha256
    if len(blob.name) == 64 and files.sha256(blob) != blob.name:
        blob.unlink()
        raise Refused(f"{where} came damaged, and is deleted; the same command fetches it again")
    return Path(path)


def files_to_send(model: Model) -> dict[str, Path]:
    """What a kernel needs of the hub, by the names that `fetch` looks for there. Raises Refused."""
    if not (repository := find_repository(model)):
        return {}
    fetched = [fetch(repository, file) for file in repository.files]
    return {f"{repository.name.replace('/', '--')}--{path.parent.name}--{path.name}": path for path in fetched}
