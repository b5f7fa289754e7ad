"""Folders as Hugging Face's libraries save them, with tiny random models and a tokenizer of a few words."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = TINY | {"vocab_size": 12, "max_position_embeddings": 20}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["a", "b", "c", "d", "good", "bad", "mri", "scan"]
CLASSES: dict[str, Any] = {
    "bert": (BertModel, BertConfig, TEXT | {"pad_token_id": 0}),
    "roberta": (RobertaModel, RobertaConfig, TEXT | {"pad_token_id": 0, "type_vocab_size": 1}),
    "vit": (ViTModel, ViTConfig, TINY | {"image_size": 16, "patch_size": 8}),
}


def write_hugging(folder: Path, kind: str = "bert", **changes: Any) -> Any:
    """Save a model whose every weight is drawn from a normal distribution, and return it."""
    library, settings, values = CLASSES[kind]
    model = library(settings(**values | changes)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    if kind != "vit":
        write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
