"""A trained decoder beside the adapter: its tensors, its words, and its source, so that it needs nothing of fedsim."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from fedsim.machine.files import write_atomic, write_json
from fedsim.models.decoder import nets
from fedsim.models.tower import Encoder

DECODER_FILES = "`decoder.safetensors`, `decoder.json` and `decoder.py` the decoder"
DECODER = """import json, sys, torch
sys.path.insert(0, FOLDER)
from decoder import make_decoder
with open(FOLDER + "/decoder.json") as file:
    words = json.load(file)
decoder = make_decoder(**words["decoder"])
decoder.load_state_dict(safetensors.torch.load_file(FOLDER + "/decoder.safetensors"))
seen = {{}}
for path in words["reads"]:
    keep = lambda block, given, tokens, path=path: seen.update({{path: tokens[:, words["num_prefix_tokens"]:]}})
    model.get_submodule("base_model.model." + path).register_forward_hook(keep)
{run}
logits = decoder(torch.stack([seen[path] for path in words["reads"]], 1))"""


def write_decoder(folder: Path, params: Mapping[str, Tensor], encoder: Encoder) -> None:
    """Write decoder.safetensors, decoder.json, which names the blocks of the library's own model, and decoder.py."""
    tower, decoder = encoder.tower, encoder.decoder
    assert tower is not None, "with_decoder looks at this"
    assert decoder is not None, "there is one to write"
    start = "decoder."
    own = {name.removeprefix(start): value for name, value in params.items() if name.startswith(start)}
    write_atomic(folder / "decoder.safetensors", save({name: v.detach().cpu().contiguous() for name, v in own.items()}))
    write_atomic(folder / "decoder.py", Path(nets.__file__).read_bytes())
    facts = {
        "decoder": decoder.words,
        "reads": [tower.source_path(f"blocks.{number}") for number in tower.reads],
        "num_prefix_tokens": tower.num_prefix_tokens,
    }
    write_json(folder / "decoder.json", facts)
