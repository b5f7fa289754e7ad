"""Tensors in a safetensors file, and a JSON beside it that names its sha256: the JSON, written last, makes it count."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from fedsim.errors import UserError
from fedsim.files import write_atomic, write_json

FORMAT = 1


def write_sealed(record: Path, file: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write ``tensors`` to ``file`` beside the JSON ``record``, and ``facts`` into that."""
    path = record.with_name(file)
    own = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = safetensors.torch.save(own)
    write_atomic(path, content)
    write_json(record, {"format": FORMAT, "file": file, "sha256": hashlib.sha256(content).hexdigest(), **facts})


def read_sealed(record: Path, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the facts; ``what`` is the record's name in an error.

    UserError where either file is missing, damaged or another's.
    """
    try:
        facts = json.loads(record.read_text())
    except (OSError, ValueError) as error:
        raise UserError(str(record), f"no readable JSON ({error})", what) from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or not {"file", "sha256"} <= facts.keys():
        raise UserError(str(record), "something else", f"{what} of format {FORMAT}")
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
