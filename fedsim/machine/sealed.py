"""Records, JSON files that know their own sha256, and tensors in a file that a record names by its sha256.

The record is written last and makes the tensors count. No bit of either can change unnoticed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fedsim.config.mistakes import show
from fedsim.errors import UserError
from fedsim.machine.files import finite, write_atomic

FORMAT = 2
SEAL = "record_sha256"


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write ``record``, which has a ``format``, with its own sha256; nan and inf become null."""
    write_atomic(path, _render(record))


def read_record(path: Path, what: str, format: int) -> dict[str, Any]:
    """Return what ``write_record`` wrote; ``what`` is the record's name in an error.

    UserError where the file is missing, of another format, or not byte for byte as it was written.
    """
    try:
        content = path.read_bytes()
        record = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(str(path), f"no readable JSON ({error})", what) from None
    if not isinstance(record, dict) or "format" not in record:
        raise UserError(str(path), "something else", f"{what} of format {format}")
    if type(record["format"]) is not int or record["format"] != format:
        expected = f"{what} of format {format}, as this version of fedsim writes and reads them"
        raise UserError(str(path), f"format {show(record['format'])}", expected)
    record.pop(SEAL, None)
    if _render(record) != content:
        raise UserError(str(path), "a record that was changed or damaged", f"{what}, with the {SEAL} of its content")
    return record


def _render(record: Mapping[str, Any]) -> bytes:
    def text(content: Mapping[str, Any]) -> bytes:
        return (json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()

    plain = finite(record)
    return text({**plain, SEAL: hashlib.sha256(text(plain)).hexdigest()})


def write_sealed(record: Path, file: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write ``tensors`` to ``file`` beside the JSON ``record``, and ``facts`` into that."""
    path = record.with_name(file)
    own = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = safetensors.torch.save(own)
    write_atomic(path, content)
    write_record(record, {"format": FORMAT, "file": file, "sha256": hashlib.sha256(content).hexdigest(), **facts})


def read_sealed(record: Path, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the facts; ``what`` is the record's name in an error.

    UserError where either file is missing, damaged or another's.
    """
    facts = read_record(record, what, FORMAT)
    if not {"file", "sha256"} <= facts.keys():
        raise UserError(str(record), "no file and sha256", what)
    if facts["file"] != Path(str(facts["file"])).name:
        raise UserError(str(record), f"file {facts['file']!r}", "the name of a file beside it")
    path = record.with_name(facts["file"])
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(str(path), f"no readable file ({error.strerror})", f"the file that {record} names") from None
    found, expected = hashlib.sha256(content).hexdigest(), str(facts["sha256"])
    if found != expected:
        shown = f"{len(content)} bytes of sha256 {found[:12]}"
        raise UserError(str(path), shown, f"{expected[:12]}, as {record.name} says")
    return safetensors.torch.load(content), facts


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return total.hexdigest()
