"""What the files beside a model's weights say: a tokenizer, a normalisation, and code that is never run.

A source is a folder, or a name on the Hugging Face hub.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from fedsim.config.mistakes import show
from fedsim.errors import UserError
from fedsim.models.hub import hub_access, user_errors

Triple = tuple[float, float, float]
#: Files that may name classes of the folder's own.
CODE_FILES = ("config.json", "tokenizer_config.json")
#: What a folder says of images that are values in 0..1, less a mean and divided by a standard deviation.
USUAL_IMAGES = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
#: Of a normalisation's numbers, which are of values in 0..1.
LARGEST = 1e6
#: The files of weights, the one that is preferred first.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def access(source: str, where: str, expected: str) -> AbstractContextManager[None]:
    """UserErrors for what fails inside; a folder holds all it needs, so the hub is not even asked."""
    return user_errors(where, expected) if Path(source).is_dir() else hub_access(where, expected)


def file_of(source: str, name: str) -> Path | None:
    """A file of a local folder, or of the hub's copy or its local cache; None where it is not there."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, name))
    except EntryNotFoundError:
        return None


def object_of(source: str, name: str) -> dict[str, Any] | None:
    """The JSON object in a file of the source, None where there is no file; UserError for what is no object."""
    path = file_of(source, name)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(str(path), f"no readable JSON ({type(error).__name__}: {error})", "an object") from None
    if not isinstance(content, dict):
        raise UserError(str(path), f"JSON {show(content)}", "an object")
    return content


def refuse_code(source: str, where: str) -> None:
    """UserError where the source brings classes of its own: such code is never run, and no other network is it."""
    for name in CODE_FILES:
        if (object_of(source, name) or {}).get("auto_map"):
            raise UserError(where, f"custom code (auto_map in {name})", "a model whose code the installed library has")


def check_tokenizer(tokenizer: Any, where: str, num_ids: int) -> None:
    """UserError for a tokenizer without words, which is what the library makes where it finds no files, or with more
    of them than the model has embeddings, ``num_ids``.
    """
    vocabulary = tokenizer.get_vocab()
    if not vocabulary.keys() - {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}:
        files = " or ".join(sorted(type(tokenizer).vocab_files_names.values()))
        raise UserError(where, f"a tokenizer without words, of {len(vocabulary)} special tokens", f"{files} beside it")
    if (largest := max(vocabulary.values())) >= num_ids:
        raise UserError(where, f"token ids up to {largest} with {num_ids} embeddings", "the model's own tokenizer")


def normalisation(mean: Any, std: Any, where: str) -> tuple[Triple, Triple]:
    """Mean and standard deviation of the three channels; UserError for what are no such numbers."""
    if _is_triple(mean) and _is_triple(std) and min(std) > 0:
        return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))
    raise UserError(where, f"mean {mean} and std {std}", "three numbers each, those of std above zero")


def _is_triple(values: Any) -> bool:
    is_list = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 3
    return is_list and all(isinstance(v, int | float) and abs(v) < LARGEST for v in values)


def preprocessing(source: str, where: str) -> dict[str, Any] | None:
    """What a source says of its images; None where it has neither of the files that the library writes it into.

    UserError where its images are not values in 0..1 that are then normalised.
    """
    with access(source, where, "a folder or hub name with preprocessor_config.json"):
        content = object_of(source, "preprocessor_config.json")
        if content is None:
            content = (object_of(source, "processor_config.json") or {}).get("image_processor")
    for key, usual in USUAL_IMAGES.items():
        if content is not None and content.get(key, usual) != usual:
            raise UserError(where, f"{key}: {show(content[key])} for its images", f"{key}: {show(usual)}")
    return content


def weight_files(source: str) -> list[Path]:
    """The file of the weights, or those that an index names, as the library writes large ones.

    Safetensors are preferred. UserError where there is neither, or one that the index names is missing.
    """
    for name in WEIGHTS:
        index = object_of(source, f"{name}.index.json")
        names = [name] if index is None else sorted(set(index["weight_map"].values()))
        files = {name: file_of(source, name) for name in names}
        missing = [name for name, file in files.items() if file is None]
        if not missing:
            return [file for file in files.values() if file is not None]
        if index is not None:
            raise UserError(source, f"no file {missing[0]}", "all files that its index names")
    raise UserError(source, f"no file {WEIGHTS[0]}", f"this, or {WEIGHTS[1]}")
