"""The models, clients and inputs of FedPFT's released round (fedpft_round_*.npz), as a simulation of ours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedsim.config.words import ModelConfig
from fedsim.data import Dataset
from fedsim.inputs.images import ImageSource
from fedsim.models.encoders import load_encoder
from fedsim.models.specs import ParamSpec
from fedsim.models.stacked import StackedModel
from fedsim.models.submodel.feed_forward import choose_neurons
from fedsim.models.submodel.model import HeldModel
from fedsim.models.tuned_tower import tune
from tests.golden.clip import FOLDER, tags
from tests.unit.models.models_hugging_folders import write_tokenizer

CASES = ("roberta", "bert_ties", "vit")
# The projections that are one for us.
QKV = ("query", "key", "value")
PEFT = "base_model.model."
# The library's config by the tensors, and their axes, that have its sizes.
TEXT_SIZES = {
    "vocab_size": ("embeddings.word_embeddings.weight", 0),
    "max_position_embeddings": ("embeddings.position_embeddings.weight", 0),
    "type_vocab_size": ("embeddings.token_type_embeddings.weight", 0),
}
SIZES = {
    "hidden_size": ("encoder.layer.0.output.dense.weight", 0),
    "intermediate_size": ("encoder.layer.0.output.dense.weight", 1),
}
VIT_SIZES = {"patch_size": ("embeddings.patch_embeddings.projection.weight", 2)}
OLD_VIT = {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "attention.proj": "attention.output.dense"}


class StoredInputs(ImageSource):
    """Inputs as they are stored: floats, or texts that are all padded to the same width."""

    def _inputs(self, places: Tensor) -> Tensor:
        return self.images[places]


class Round:
    """A file's arrays, and what they are under our names."""

    def __init__(self, case: str, folder: Path) -> None:
        with np.load(FOLDER / f"fedpft_round_{case}.npz") as file:
            self.arrays = dict(file)
        self.info: dict[str, Any] = json.loads(str(self.arrays["info"]))
        self.family: str = self.info["family"]
        self.clients: list[int] = self.arrays["selected_clients"].tolist()
        self.dataset, self.parts, self.places = self._inputs()
        self.full, self.held = self._models(folder)
        self.cut = [layer.number for layer in self.held.cut_layers]

    def get(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def tensors_below(self, start: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(start): torch.from_numpy(v) for name, v in self.arrays.items() if name.startswith(start)
        }

    def _models(self, folder: Path) -> tuple[StackedModel, HeldModel]:
        start = f"fm/{PEFT}{self.family}."
        weights = {name: value for name, value in self.tensors_below(start).items() if "lora_" not in name}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        words = self._config(weights)
        (folder / "config.json").write_text(json.dumps(words))
        plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(plain))
        if self.family != "vit":
            write_tokenizer(folder)  # a text tower asks for one; the files hold ids
        lora = {"r": self.info["lora_r"], "lora_alpha": float(self.info["lora_alpha"]), "target": self._targets()}
        config = ModelConfig.model_validate({"name": f"hf:{folder}", "lora": lora})
        num_classes = self.info["num_labels"]
        encoder = load_encoder(config, words.get("image_size", 0), ["x"] * num_classes, 0)
        assert encoder.tower is not None
        blocks, tensors = encoder.tower.blocks, {}
        chosen = choose_neurons(blocks, self.info["layers_retained"], self.info["intermediate_rank"])
        for layer, (feed_forward, neurons) in chosen.items():
            np.testing.assert_array_equal(neurons, self.arrays[f"sub/layer{layer}/neuron_retained"])
            tensors |= {f"blocks.{layer}.{path}": value for path, value in feed_forward.cut(neurons).items()}
        full = tune(config, encoder, num_classes, torch.device("cpu"))
        held = HeldModel(full, range(len(blocks)), tensors)
        for model in (full, held) if self.family == "roberta" else ():
            give_two_layers(model)
        return full, held

    def _config(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """The library's config: that of the family's other file, with the sizes of these weights.

        The number of heads stands in that file alone.
        """
        with np.load(FOLDER / f"fedpft_construct_{self.family}.npz") as file:
            words: dict[str, Any] = json.loads(str(file["fm_config"]))
        sizes = SIZES | (VIT_SIZES if self.family == "vit" else TEXT_SIZES)
        words |= {key: weights[name].shape[axis] for key, (name, axis) in sizes.items()}
        words["num_hidden_layers"] = len(tags(weights, r"encoder\.layer\.(\d+)\."))
        words["hidden_act"] = self.info["hidden_act"]
        if self.family == "vit":
            words["image_size"] = self.arrays["eval/pixel_values"].shape[-1]
        return words

    def _targets(self) -> list[str]:
        """Our names of the layers with LoRA."""
        found = tags(self.arrays["lora_modules_matched"], r".*encoder\.layer\.\d+\.(.+)")
        ours = {f"attention.self.{part}": part[0] for part in QKV}
        if self.family == "vit":
            ours |= {theirs: name.rpartition(".")[2] for name, theirs in OLD_VIT.items()}
        return [ours.get(name, name) for name in found]

    def _inputs(self) -> tuple[Dataset, list[np.ndarray], dict[str, np.ndarray]]:
        """All inputs as one set, each client's places in it, and those of ``eval`` and ``align_data``."""
        names = [*(f"client{client}_data" for client in self.clients), "eval", "align_data"]
        inputs = [self._stored(name) for name in names]
        bounds = np.cumsum([len(part) for part in inputs])
        places = dict(zip(names, np.split(np.arange(bounds[-1]), bounds[:-1]), strict=True))
        labels = torch.zeros(int(bounds[-1]), dtype=torch.int64)
        for name in names[:-1]:
            labels[places[name]] = self.get(f"{name}/labels")
        none = places["eval"][:0]
        parts = [none for _ in range(max(self.clients) + 1)]
        for client in self.clients:
            parts[client] = places[f"client{client}_data"]
        train = np.concatenate([parts[client] for client in self.clients])
        texts = None if self.family == "vit" else (("a",),) * len(labels)
        classes = tuple(str(label) for label in range(self.info["num_labels"]))
        dataset = Dataset("golden", torch.cat(inputs), labels, classes, train, none, none, None, None, (), None, texts)
        return dataset, parts, places

    def _stored(self, name: str) -> Tensor:
        if self.family == "vit":
            return self.get(f"{name}/pixel_values")
        ids, mask = (self.get(f"{name}/{key}") for key in ("input_ids", "attention_mask"))
        return torch.stack([ids.where(mask > 0, -1), torch.zeros_like(ids)], 1).int()

    def params(self, start: str) -> dict[str, Tensor]:
        """The adapter and classifier below ``start`` under our names."""
        theirs = {name.removeprefix(PEFT): value for name, value in self.tensors_below(f"{start}/").items()}
        found = {f"head.{n.removeprefix('classifier.')}": v for n, v in theirs.items() if n.startswith("classifier.")}
        found = {OUR_HEAD.get(name, name): value for name, value in found.items()}
        for layer in self.full.lora_layers:
            for letter in "ab":
                factors = [theirs[f"{path}.lora_{letter.upper()}.weight"] for path in self.released_paths(layer.path)]
                found[f"{layer.path}.lora_{letter}"] = torch.stack(factors)
        return found

    def released_paths(self, path: str) -> list[str]:
        """The released names of one of our layers with LoRA: of one, or of all that are fused in it."""
        return [self._path(path, part) for part in (QKV if path.endswith("qkv") else ("",))]

    def proxies(self, start: str) -> dict[str, Tensor]:
        """The cut feed-forwards below ``start`` under our names."""
        theirs = self.tensors_below(f"{start}/{PEFT}")
        names = self.proxy_names()
        return {names[name]: value for name, value in theirs.items()}

    def proxy_names(self) -> dict[str, str]:
        """Our names of the cut feed-forwards' tensors by the release's."""
        ours = [name for name, spec in self.held.specs.items() if spec.kind == "proxy"]
        return {self._path(name.removeprefix("submodel."), ""): name for name in ours}

    def _path(self, path: str, part: str) -> str:
        """The released name of one of our linear layers, or of the ``part`` of a fused one."""
        path = path.removesuffix("qkv") + part if part else path
        for ours, theirs in OLD_VIT.items() if self.family == "vit" else ():
            path = path.replace(ours, theirs)
        return f"{self.family}.encoder.layer.{path.removeprefix('blocks.')}"

    def logits(self, model: StackedModel, params: Mapping[str, Tensor]) -> Tensor:
        """The class scores of ``eval``."""
        with torch.no_grad():
            fixed = model.prefix(self.dataset.images[self.places["eval"]])
            return model.forward(params, fixed[None], training=False)[0]


OUR_HEAD = {"head.out_proj.weight": "head.weight", "head.out_proj.bias": "head.bias"}


def give_two_layers(model: StackedModel) -> None:
    """Put RoBERTa's dense layer and tanh in front of the linear classifier."""
    model.specs |= {"head.dense.weight": ParamSpec((model.width, model.width), "head")}
    model.specs |= {"head.dense.bias": ParamSpec((model.width,), "head")}

    def classify(params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        dense, bias = params["head.dense.weight"], params["head.dense.bias"]
        hidden = features @ dense.mT + (bias[:, None] if bias.dim() == 2 else bias)
        return type(model).classify(model, params, hidden.tanh())

    vars(model)["classify"] = classify
