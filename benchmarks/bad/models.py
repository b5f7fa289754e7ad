"""Bad weights, encoder folders, sub-models, and partition files; see ``files``."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.bad.damage import Damage
from benchmarks.bad.data import text_words, write_texts
from benchmarks.bad.files import BASE, Good, Words
from fedsim.config.data import DataConfig
from fedsim.data import load_dataset
from tests.submodels import write_submodel
from tests.unit.models.models_clip_folders import write_clip
from tests.unit.models.models_hugging_folders import write_hugging
from tests.unit.models.test_models_weights import PLACES, TINY
from tests.unit.models.test_models_weights import write as write_weights

LARGE = {"data": BASE["data"] | {"image_size": 32}}
LORA = BASE["model"]["lora"]
PARTITION = "partition.json"


def bad_models() -> Iterator[Good]:
    """All of them."""
    yield weights_file()
    yield from encoder_folders()
    yield submodel()
    yield partition()


# --- weights


def weights_file() -> Good:
    """A safetensors file of a timm model."""
    name = "timm/weights.safetensors"

    def words(folder: Path) -> Words:
        timm = {"name": "timm:vit_tiny_patch16_224", "options": TINY, "weights": str(folder / name)}
        return {"model": timm | {"lora": LORA}, **LARGE}

    more: dict[str, Damage] = {how: partial(_with_tensors, name, change) for how, change in TENSORS.items()}
    more |= {how: partial(_with_header, name, change) for how, change in HEADERS.items()}
    more |= {how: partial(_with_length, name, length) for how, length in LENGTHS.items()}
    return Good("weights", "weights", lambda folder: write_weights(folder / "timm", "timm"), words, [name], more)


PLACE = PLACES["timm"]
OTHER = "blocks.0.mlp.fc2.bias"
TENSORS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    **{
        f"tensor of {word}": lambda state, value=value: state | {PLACE: torch.full_like(state[PLACE], value)}
        for word, value in (("NaN", torch.nan), ("infinity", torch.inf), ("3e38", 3e38))
    },
    **{
        f"tensor as {dtype}": lambda state, dtype=dtype: state | {PLACE: state[PLACE].to(dtype)}
        for dtype in (torch.int32, torch.uint8, torch.bool, torch.float64, torch.bfloat16)
    },
    "tensor transposed": lambda state: state | {PLACE: state[PLACE].T.contiguous()},
    "tensor in one row": lambda state: state | {PLACE: state[PLACE].flatten()},
    "tensor with an axis more": lambda state: state | {PLACE: state[PLACE][None]},
    "tensor without elements": lambda state: state | {PLACE: state[PLACE][:0]},
    "tensor of one number": lambda state: state | {PLACE: torch.tensor(1.0)},
    "tensor cut": lambda state: state | {PLACE: state[PLACE][1:].contiguous()},
    "tensor missing": lambda state: {name: value for name, value in state.items() if name != PLACE},
    "tensor too many": lambda state: state | {"blocks.9.mlp.fc2.bias": state[OTHER].clone()},
    "tensor by another name": lambda state: {name.replace("fc2", "fc3"): value for name, value in state.items()},
    "tensor named in two lines": lambda state: state | {"blocks.0\r\nmore": torch.zeros(1)},
    "one block": lambda state: {name: value for name, value in state.items() if "blocks.1" not in name},
    "only a head": lambda state: {"head.bias": state["head.bias"]},
    "no tensor": lambda _: {},
}
HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "header a list": lambda header: list(header),
    "header without all": lambda _: {},
    "header with an integer": lambda header: header | {"more": 3},
    "metadata with a number": lambda header: header | {"__metadata__": {"format": 3}},
    "metadata of TensorFlow": lambda header: header | {"__metadata__": {"format": "tf"}},
    **{
        f"entry {change}": lambda header, change=change: header | {PLACE: header[PLACE] | change}
        for change in (
            *({"dtype": dtype} for dtype in ("I32", "F16", "F64", "Q9", None)),
            *({"shape": shape} for shape in ([32, 127], [-32, -128], [4096], [0], [2**62, 8], "32", None)),
            *({"data_offsets": offsets} for offsets in ([0, 4], [0, 16384], [-1, 16383], [2**63, 2**64], [4], None)),
        )
    },
}
LENGTHS = {f"header of {length} bytes": length for length in (0, 1, 100, 2**20, 2**40, 2**63, 2**64 - 1)}


def _with_tensors(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], folder: Path) -> None:
    save_file(change(load_file(folder / name)), folder / name)


def _with_header(name: str, change: Callable[[dict[str, Any]], Any], folder: Path) -> None:
    whole = (folder / name).read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.dumps(change(json.loads(whole[8:end]))).encode()
    (folder / name).write_bytes(len(header).to_bytes(8, "little") + header + whole[end:])


def _with_length(name: str, length: int, folder: Path) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(length.to_bytes(8, "little") + whole[8:])


# --- folders of models


def encoder_folders() -> Iterator[Good]:
    """Folders as transformers and open_clip save them."""
    files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    yield Good(
        "encoder folders",
        "bert",
        partial(write_texts, suffix="jsonl"),
        text_words,
        [f"bert/{name}" for name in files],
        {**_settings("bert/config.json", BERT), **_settings("bert/tokenizer_config.json", TOKENIZER)},
    )
    yield Good(
        "encoder folders",
        "vit",
        lambda folder: write_hugging(folder, "vit"),
        lambda folder: {
            "model": {"name": f"hf:{folder}", "lora": LORA},
            "data": BASE["data"] | {"image_size": 16},
        },
        ["config.json", "model.safetensors"],
        _settings("config.json", BERT | {"patch_size": 5, "image_size": 0, "num_channels": 1}),
    )
    yield Good(
        "encoder folders",
        "clip",
        write_clip,
        lambda folder: {"model": {"name": f"open_clip:local-dir:{folder}", "train": "all"}, **LARGE},
        ["open_clip_config.json", "open_clip_model.safetensors"],
        _settings("open_clip_config.json", CLIP),
    )


BERT: Words = {
    "hidden_size": 31,
    "num_attention_heads": 0,
    "num_hidden_layers": -1,
    "intermediate_size": "48",
    "hidden_act": "loud",
    "layer_norm_eps": None,
    "hidden_dropout_prob": 2,
    "model_type": "gpt2",
    "auto_map": {"AutoModel": "own.Model"},
}
TOKENIZER: Words = {"pad_token": None, "tokenizer_class": "Nobodys", "model_max_length": -1, "unk_token": 3}
CLIP: Words = {"model_cfg": [], "preprocess_cfg": {"mean": [0.5], "std": [0, 0, 0]}}


def _settings(name: str, values: Words) -> dict[str, Damage]:
    def edit(change: Words, folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))

    return {f"{name}: {key} {value}": partial(edit, {key: value}) for key, value in values.items()}


def submodel() -> Good:
    """A sub-model as launch.py distill leaves it."""
    return Good(
        "sub-models",
        "submodel",
        lambda folder: write_submodel(folder / "half", BASE["model"], intermediate_rank=8),
        lambda folder: {"seed": 0, "model": BASE["model"] | {"submodel": {"folder": str(folder / "half")}}},
        ["half/config.yaml", "half/submodel.json", "half/submodel.safetensors"],
        {how: partial(_with_tensors, "half/submodel.safetensors", TENSORS[how]) for how in ("no tensor",)},
    )


# --- partition files


def partition() -> Good:
    """A partition of the packaged digits among four clients."""

    def edit(change: Callable[[dict[str, Any]], Any], folder: Path) -> None:
        (folder / PARTITION).write_text(json.dumps(change(json.loads((folder / PARTITION).read_text()))))

    return Good(
        "partitions",
        "partition",
        _write_partition,
        lambda folder: {
            "clients": BASE["clients"] | {"partition": {"name": "file", "path": str(folder / PARTITION)}},
        },
        [PARTITION],
        {how: partial(edit, change) for how, change in PARTS.items()},
    )


def _write_partition(folder: Path) -> None:
    images = load_dataset(DataConfig.model_validate(BASE["data"]))
    splits = {"clients": images.train, "val": images.val, "test": images.test}
    parts = {name: [split[client::4].tolist() for client in range(4)] for name, split in splits.items()}
    (folder / PARTITION).write_text(json.dumps(parts))


def _first(key: str, part: Callable[[list[int]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda parts: parts | {key: [part(parts[key][0]), *parts[key][1:]]}


PARTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    f"{key}: {how}": change
    for key in ("clients", "val", "test")
    for how, change in {
        "a client too few": lambda parts, key=key: parts | {key: parts[key][1:]},
        "a client too many": lambda parts, key=key: parts | {key: [*parts[key], []]},
        "all clients empty": lambda parts, key=key: parts | {key: [[]] * 4},
        "a mapping": lambda parts, key=key: parts | {key: dict(enumerate(parts[key]))},
        "null": lambda parts, key=key: parts | {key: None},
        "left out": lambda parts, key=key: {name: part for name, part in parts.items() if name != key},
        "misspelt": lambda parts, key=key: {name.replace(key, key + "s"): part for name, part in parts.items()},
        "the next client's": lambda parts, key=key: parts | {key: [parts[key][1], *parts[key][1:]]},
        "of another split": lambda parts, key=key: parts | {key: parts["test" if key != "test" else "val"]},
        **{
            word: _first(key, lambda part, value=value: [*part[1:], value])
            for word, value in {
                "an index below zero": -1,
                "an index too large": 10**6,
                "an index of 30 digits": 10**30,
                "an index of 4000 digits": 10**3999,
                "a fraction": 1.5,
                "a whole number as a float": 1.0,
                "a text": "1",
                "true": True,
                "NaN": float("nan"),
                "nothing": None,
                "a list": [1],
            }.items()
        },
        "an index twice": _first(key, lambda part: [*part, part[0]]),
        "a number for a client": _first(key, lambda part: part[0]),
        "a text for a client": _first(key, str),
        "one image for a client": _first(key, lambda part: part[:1]),
    }.items()
}
