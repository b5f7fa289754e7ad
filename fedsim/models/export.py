"""Writing the trained LoRA factors as a PEFT adapter for the library's own, unmodified model.

A layer of S slices (q, k and v of a fused projection, otherwise one), of which G were targeted, gets one
pair of matrices of rank G * R: the A factors below each other, the B factors as blocks, zero for untargeted
slices. lora_alpha grows with the rank, so that their quotient, the scaling, stays (Hu et al., LoRA, ICLR
2022, equation 3). Where the server has changed the frozen weights, the pair also has what it added to them, as
singular vectors, so that it fits the library's own weights: its rank grows by that of the sum of all changes. Where
training began with a part of the library's weight in the factors (pissa, olora), the first factors are taken off again.

Shapes: G targeted of S slices of a layer's output, R LoRA rank, D input width, O width of one slice.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedsim.catalogue.functions import is_import_path
from fedsim.config.words import LoraConfig, ModelConfig
from fedsim.kernels.frozen import plain
from fedsim.machine.files import write_atomic, write_json
from fedsim.models.any.conv import LoRAConv2d
from fedsim.models.attention import ClipAttention, HuggingAttention
from fedsim.models.decoder.export import DECODED, DECODER_FILES, write_decoder
from fedsim.models.lora import LoRALinear
from fedsim.models.outside.amplitudes import NORMALISED, write_amplitude_norm
from fedsim.models.specs import SHIFT, A, B
from fedsim.models.tower import Adaptable, Encoder

QKV = ("q", "k", "v")
OWN, OUT_PROJ = (
    "",
    ".base_layer.out_proj",
)  # where peft keeps a module's pair, and a MultiheadAttention's second

# Of what was added to frozen weights a singular value is none when it is that small beside the largest one: what
# rounding to float32 leaves.
RELATIVE_ZERO = 1e-6

Pair = tuple[Tensor, Tensor]

README = """# LoRA adapter for {name}

`adapter_model.safetensors` holds the low-rank factors, {files}; `about.json` says of which
round they are, with metrics, class names and preprocessing. To load both, in the root of fedsim:

```python
import peft, safetensors.torch, torch.nn.functional as F
{base}
model = peft.PeftModel.from_pretrained(base, FOLDER).eval()
{answer}
```

FOLDER is the folder of this file. {inputs} The outputs have the order of the data set's class names.
{shifted}{amplitude}"""
SHIFTED = """
The server has changed the frozen weights in training. The factors hold these changes, too, and so have ranks of up to
{rank} in place of {r}: the adapter belongs on the library's unchanged weights, as above.
"""
LIBRARY = """from fedsim.config.words import ModelConfig
from fedsim.models.encoders import library_model
config = ModelConfig(name={name!r}, weights={weights!r}, options={options!r})
base = library_model(config, image_size={size}, seed={seed}).eval()"""
NO_LIBRARY = "base = ...  # the network that {name} makes its tower of, in eval mode"
IMAGES = """`images` are floats (N, 3, {size}, {size}): values in 0..1, minus the mean
{mean}, divided by {std}."""
AMPLITUDE_NORM = """
Before the mean is subtracted, the images take on the amplitudes that the clients agreed on:

```python
import runpy
images = {normalised}(images)
```
"""
VOLUMES = """
They are the {slices} slices of one volume after those of another; the mean of a volume's features is what the
classifier sees."""
TEXTS = """`texts` is a list of strings, or of pairs of them."""
TOKENS = """import transformers
from fedsim.models.hugging import source_of
tokenizer = transformers.AutoTokenizer.from_pretrained(source_of(config))
options = dict(padding=True, truncation=True, return_token_type_ids=True, return_tensors="pt")
tokens = tokenizer(texts, max_length={max_length}, **options)
states = model(**tokens)
"""
HEAD_FILE = "`head.safetensors` the classifier"
HEAD = """head = safetensors.torch.load_file(FOLDER + "/head.safetensors")
{tokens}logits = {logits}"""
LINEAR_LOGITS = 'F.linear({features}, head["weight"], head.get("bias"))'
TEXT_LOGITS = 'head["logit_scale"].exp() * F.normalize({features}, dim=-1) @ head["text_features"].T'


class Trained(Protocol):
    """What is exported: a config with a ``lora`` section, and the encoder that was built from it."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def encoder(self) -> Encoder: ...


def export_peft(folder: Path, params: Mapping[str, Tensor], model: Trained, max_tokens: int | None = None) -> None:
    """Make ``peft.PeftModel.from_pretrained(library_model(...), folder)`` give the trained encoder's outputs.

    ``params`` has ``<path>.lora_a`` (G, R, D) and ``<path>.lora_b`` (G, O, R) for each adapted layer of the
    tower, slices in the order q, k, v, and the classifier: ``head.weight`` and ``head.bias``, ``logit_scale`` where
    that was trained, or a decoder's. The classifier goes to head.safetensors, a decoder and amplitude normalisation
    to files of their own, and README.md says how to load all of it. ``max_tokens``: where texts are cut; None: at the
    model's limit.
    """
    lora, tower = model.config.lora, model.encoder.adaptable
    assert lora is not None, "only LoRA makes an adapter"
    params, added = with_shifts_in_factors(params)
    adapters = _adapters(tower, params, lora)
    tensors = {
        f"base_model.model.{path}{inner}.lora_{letter}.weight": matrix
        for path, pairs in adapters.items()
        for inner, pair in pairs.items()
        for letter, matrix in zip("AB", pair, strict=True)
    }
    for path, vector in _magnitudes(tower, params, lora).items():
        tensors[f"base_model.model.{path}.lora_magnitude_vector"] = vector
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "adapter_model.safetensors", _serialised(tensors))
    if model.encoder.decoder is None:
        write_atomic(folder / "head.safetensors", _serialised(_head(params, model.encoder)))
    else:
        write_decoder(folder, params, model.encoder)
    write_amplitude_norm(folder, params, model.config, model.encoder.image_size)
    write_json(folder / "adapter_config.json", _peft_config(tower, adapters, lora, model.config.name))
    write_atomic(folder / "README.md", _readme(model.config, model.encoder, added, max_tokens).encode())


def with_shifts_in_factors(params: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Return parameters in which the factors hold every layer's shift, and by how many ranks the largest has grown.

    All slices of a layer grow alike, by the largest rank of their shifts.
    """
    found = {name: value for name, value in params.items() if not name.endswith(SHIFT)}
    grown = [0]
    for path in (name.removesuffix(SHIFT) for name in params.keys() - found.keys()):
        left, values, right = torch.linalg.svd(params[path + SHIFT].double().cpu(), full_matrices=False)
        rank = int((values > RELATIVE_ZERO * values.amax(1, keepdim=True)).sum(1).max())
        a, b = (found[path + letter].cpu() for letter in (A, B))
        found[path + A] = torch.cat([a, right[:, :rank].to(a.dtype)], 1)
        found[path + B] = torch.cat([b, (left * values[:, None])[..., :rank].to(b.dtype)], 2)
        grown.append(rank)
    return found, max(grown)


def _adapters(tower: Adaptable, params: Mapping[str, Tensor], lora: LoraConfig) -> dict[str, dict[str, Pair]]:
    """For every module that peft replaces, by its path in the library's model, the pairs (A, B) it holds."""
    adapters: dict[str, dict[str, Pair]] = {}
    for path in (name.removesuffix(".lora_a") for name in params if name.endswith(".lora_a")):
        parent, _, word = path.rpartition(".")
        a_GRD, b_GOR = _whole_pair(
            tower.get_submodule(path), *(params[f"{path}.lora_{letter}"].cpu() for letter in "ab")
        )
        attention = tower.get_submodule(parent)
        if word == "qkv" and isinstance(attention, HuggingAttention):
            # The library keeps q, k and v apart, so every targeted one gets a pair of its own.
            names = [name for name, part in zip(attention.names, QKV, strict=False) if part in lora.target]
            for name, a, b in zip(names, a_GRD, b_GOR, strict=True):
                adapters[f"{tower.source_path(parent)}.{name}"] = {OWN: (a, b)}
            continue
        layer = tower.get_submodule(path)
        kernels = layer.kernels(a_GRD, b_GOR) if isinstance(layer, LoRAConv2d) else None
        a, b = kernels or _one_pair(path, a_GRD, b_GOR, lora)
        if isinstance(attention, ClipAttention):
            assert word == "qkv", "load_encoder refuses proj here"
            unused = torch.zeros_like(a), torch.zeros(a.shape[1], len(a))
            adapters[tower.source_path(parent)] = {OWN: (a, b), OUT_PROJ: unused}
        elif word == "proj" and isinstance(attention, HuggingAttention):
            adapters[f"{tower.source_path(parent)}.{attention.names[3]}"] = {OWN: (a, b)}
        else:
            adapters[tower.source_path(path)] = {OWN: (a, b)}
    return adapters


def _magnitudes(tower: Adaptable, params: Mapping[str, Tensor], lora: LoraConfig) -> dict[str, Tensor]:
    """DoRA's magnitudes (O,), or (S * O,) of a fused projection, by the modules' paths in the library's model.

    Slices that are not targeted have the norms of their rows, which changes nothing.
    """
    found: dict[str, Tensor] = {}
    for path in (name.removesuffix(".lora_magnitude") for name in params if name.endswith(".lora_magnitude")):
        parent, _, word = path.rpartition(".")
        magnitude_GO, attention = params[f"{path}.lora_magnitude"].cpu(), tower.get_submodule(parent)
        if word == "qkv" and isinstance(attention, HuggingAttention):
            names = [name for name, part in zip(attention.names, QKV, strict=False) if part in lora.target]
            found |= {f"{tower.source_path(parent)}.{name}": row for name, row in zip(names, magnitude_GO, strict=True)}
            continue
        place = tower.source_path(path)
        if word == "proj" and isinstance(attention, HuggingAttention):
            place = f"{tower.source_path(parent)}.{attention.names[3]}"
        layer = tower.get_submodule(path)
        assert isinstance(layer, LoRALinear), "a tower with magnitudes has been tuned"
        norms_SO = plain(layer.base.weight).float().norm(dim=1).view(layer.num_slices, -1).cpu()
        norms_SO[list(layer.slices)] = magnitude_GO
        found[place] = norms_SO.flatten()
    return found


def _whole_pair(layer: nn.Module, a_GRD: Tensor, b_GOR: Tensor) -> Pair:
    """What the library's own weight needs: the factors, less those that the layer's weight began by giving away."""
    if not isinstance(layer, LoRALinear) or layer.start is None:
        return a_GRD, b_GOR
    a, b = (factor.cpu() for factor in layer.start)
    return torch.cat([a_GRD, a], 1), torch.cat([b_GOR, -b], 2)


def _one_pair(path: str, a_GRD: Tensor, b_GOR: Tensor, lora: LoraConfig) -> Pair:
    """One A (G * R, D) and one B (S * O, G * R) for all slices of a layer."""
    slices, num_slices = [0], 1
    if path.endswith(".qkv") and set(QKV) & set(lora.target):
        slices, num_slices = [QKV.index(word) for word in QKV if word in lora.target], 3
    num_targeted, width, rank = b_GOR.shape
    b_SOGR = b_GOR.new_zeros(num_slices, width, num_targeted, rank)
    b_SOGR[slices, :, range(num_targeted)] = b_GOR
    return a_GRD.flatten(0, 1), b_SOGR.flatten(0, 1).flatten(1, 2)


def _peft_config(
    tower: Adaptable, adapters: Mapping[str, Mapping[str, Pair]], lora: LoraConfig, name: str
) -> dict[str, Any]:
    """The entries of peft's LoraConfig that differ from its defaults."""
    ranks = {path: len(pairs[OWN][0]) for path, pairs in adapters.items()}
    common = min(ranks.values())
    others = {re.escape(path): rank for path, rank in ranks.items() if rank != common}
    # What peft divides lora_alpha by at a rank.
    divisor = math.sqrt if lora.use_rslora else float
    scaling = lora.scaling(lora.r)
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": name,
        "inference_mode": True,
        "target_modules": tower.targets(list(adapters)),
        "r": common,
        "lora_alpha": scaling * divisor(common),
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
        "rank_pattern": others,
        "alpha_pattern": {path: scaling * divisor(rank) for path, rank in others.items()},
    }


def _head(params: Mapping[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    if encoder.text_features is None:
        return {part: params[f"head.{part}"] for part in ("weight", "bias") if f"head.{part}" in params}
    scale = params.get("logit_scale", torch.tensor(encoder.logit_scale))
    return {"text_features": encoder.text_features, "logit_scale": scale}


def _readme(config: ModelConfig, encoder: Encoder, added: int, max_tokens: int | None) -> str:
    assert config.lora is not None, "only LoRA makes an adapter"
    whole_clip = config.name.startswith("open_clip:")
    size, norm = encoder.image_size, config.amplitude_norm
    features = "model.encode_image(images, normalize=False)" if whole_clip else encoder.adaptable.library_features
    tokens, inputs = "", IMAGES.format(size=size, mean=encoder.mean, std=encoder.std)
    if encoder.slices is not None:
        inputs += VOLUMES.format(slices=encoder.slices)
        features += f".unflatten(0, (-1, {encoder.slices})).mean(1)"
    if encoder.tokenizer is not None:
        tokens, inputs = TOKENS.format(max_length=max_tokens or encoder.tokenizer.model_max_length), TEXTS
    logits = LINEAR_LOGITS if encoder.text_features is None else TEXT_LOGITS
    if encoder.per_pixel:
        logits = "{features}"
    files, answer = HEAD_FILE, HEAD.format(tokens=tokens, logits=logits.format(features=features))
    if encoder.decoder is not None:
        files, answer = DECODER_FILES, f"import runpy\nlogits = {DECODED}"
    words_of_base = {"name": config.name, "weights": config.weights, "options": config.options, "seed": encoder.seed}
    return README.format(
        name=config.name,
        base=(NO_LIBRARY if is_import_path(config.name) else LIBRARY).format(size=size, **words_of_base),
        files=files,
        answer=answer,
        inputs=inputs,
        shifted=SHIFTED.format(rank=config.lora.r + added, r=config.lora.r) if added else "",
        amplitude="" if norm is None else AMPLITUDE_NORM.format(normalised=NORMALISED),
    )


def _serialised(tensors: Mapping[str, Tensor]) -> bytes:
    content: bytes = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return content
