"""Texts as token ids on the device, padded to the longest of a batch.

A text's outputs do not depend on the padding, but for rounding: every attention leaves it out. Batches follow from the
config alone, so their widths, and with them all bits, are the same on any number of ranks.

Shapes: N texts of the data set, T tokens of the longest, K clients, B texts per client and step.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedsim.config.distill import DistillConfig
from fedsim.config.experiment import Config
from fedsim.data import Dataset
from fedsim.data.dataset import Texts
from fedsim.errors import UserError
from fedsim.inputs.images import ImageSource
from fedsim.models.stacked import StackedModel

PADDING = -1


class TextSource(ImageSource):
    """Gives the model's inputs (2, T) for texts named by their index: token ids and segments.

    The ids after a text's end are ``PADDING``. The segment of a pair's second text is 1 where the tokenizer tells the
    two apart.
    """

    def __init__(self, dataset: Dataset, model: StackedModel, max_tokens: int | None) -> None:
        tokenizer = model.encoder.tokenizer
        assert dataset.texts is not None, "input_source looks at that"
        assert tokenizer is not None, "and at that"
        tokens = tokenise(dataset.texts, tokenizer, max_tokens)
        tower: Any = model.encoder.net
        num_segments = int(tokens[:, 1].max()) + 1
        if num_segments > tower.num_segments:
            expected = f"the model's {tower.num_segments} at most"
            raise UserError("model.name", f"a tokenizer that tells {num_segments} kinds of text apart", expected)
        lengths = (tokens[:, 0] != PADDING).sum(1)
        self._lengths = lengths.to(model.device)
        super().__init__(replace(dataset, images=tokens), model, ())
        self.num_elements = round(lengths.float().mean().item()) * model.width

    def _inputs(self, places: Tensor) -> Tensor:
        """Return texts (N, 2, T), T the length of the longest of these."""
        return self.images[places][:, :, : int(self._lengths[places].max())]


def tokenise(texts: Texts, tokenizer: Any, max_tokens: int | None) -> Tensor:
    """Return ids and segments (N, 2, T) int32.

    UserError where the model has fewer positions than ``max_tokens``, where either leaves no room for words, and where
    the tokenizer knows less than half of them.
    """
    room = tokenizer.model_max_length
    if max_tokens is not None and max_tokens > room:
        raise UserError("data.max_tokens", str(max_tokens), f"at most the model's {room}")
    first, *second = ([text[part] for text in texts] for part in range(len(texts[0])))
    longest, num_special = max_tokens or room, tokenizer.num_special_tokens_to_add(pair=bool(second))
    if longest <= num_special:
        where = "model.name" if max_tokens is None else "data.max_tokens"
        raise UserError(where, f"room for {longest} tokens", f"more than the {num_special} that are no words")
    found = tokenizer(first, *second, truncation=True, max_length=longest, return_token_type_ids=True, verbose=False)
    tokens = torch.zeros(len(texts), 2, max(map(len, found["input_ids"])), dtype=torch.int32)
    tokens[:, 0] = PADDING
    for row, (ids, segments) in enumerate(zip(found["input_ids"], found["token_type_ids"], strict=True)):
        tokens[row, :, : len(ids)] = torch.tensor([ids, segments])
    _check_known(tokens[:, 0], tokenizer)
    return tokens


def _check_known(ids: Tensor, tokenizer: Any) -> None:
    """UserError unless at least half of the words in ``ids`` (N, T) are in the tokenizer's vocabulary."""
    unknown = tokenizer.unk_token_id
    others = torch.tensor([PADDING, *(number for number in tokenizer.all_special_ids if number != unknown)])
    words = ids[~torch.isin(ids, others)]
    num_known = len(words) if unknown is None else int((words != unknown).sum())
    if 2 * num_known < len(words) or not num_known:
        found = f"a tokenizer ({tokenizer.name_or_path}) that knows {num_known} of the texts' {len(words)} words"
        raise UserError("model.name", found, "one with the vocabulary of the texts")


def input_source(config: Config | DistillConfig, dataset: Dataset, model: StackedModel) -> ImageSource:
    """Return what gives the model its inputs; UserError for an encoder of the other kind."""
    takes_texts = model.encoder.tokenizer is not None
    if takes_texts != (dataset.texts is not None):
        own, other = ("texts", "images") if takes_texts else ("images", "texts")
        raise UserError(
            "model.name", f"{config.model.name}, which takes {own}, with {dataset.name}", f"one for {other}"
        )
    if dataset.num_slices != model.encoder.slices:
        found = f"{dataset.name} with {dataset.num_slices or 'no'} slices"
        raise UserError("data.slices", found, f"{model.encoder.slices or 'none'}, as the model's other inputs have")
    if takes_texts and config.model.amplitude_norm is not None:
        raise UserError("model.amplitude_norm", f"given with {config.model.name}", "null: only images have amplitudes")
    if takes_texts:
        return TextSource(dataset, model, config.data.max_tokens)
    return ImageSource(dataset, model, config.data.augment)
