"""A trained decoder beside the adapter: its tensors, its words, and its source, so that it needs nothing of fedsim."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from fedsim.machine.files import write_atomic, write_json
from fedsim.models.decoder import nets
from fedsim.models.tower import Encoder

DECODER_FILES = "`decoder.safetensors`, `decoder.json` and `decoder.py` the decoder"
DECODED = 'runpy.run_path(FOLDER + "/decoder.py")["decoded"](model, FOLDER)(images)'


def write_decoder(folder: Path, params: Mapping[str, Tensor], encoder: Encoder) -> None:
    """Write decoder.safetensors, decoder.json, which names the blocks of the library's own model, and decoder.py."""
    decoder = encoder.decoder
    assert decoder is not None, "there is one to write"
    reads, num_prefix_tokens = read_blocks(encoder)
    start = "decoder."
    own = {name.removeprefix(start): value for name, value in params.items() if name.startswith(start)}
    write_atomic(folder / "decoder.safetensors", save({name: v.detach().cpu().contiguous() for name, v in own.items()}))
    write_atomic(folder / "decoder.py", Path(nets.__file__).read_bytes())
    facts = {"decoder": decoder.words, "reads": reads, "num_prefix_tokens": num_prefix_tokens}
    write_json(folder / "decoder.json", facts)


def read_blocks(encoder: Encoder) -> tuple[list[str], int]:
    """Return the paths in the library's own model of the blocks that a decoder reads, and how many tokens to skip."""
    tower = encoder.tower
    assert tower is not None, "with_decoder looks at this"
    return [tower.source_path(f"blocks.{number}") for number in tower.reads], tower.num_prefix_tokens
