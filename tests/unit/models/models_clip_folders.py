"""Small open_clip models in folders, as open_clip:local-dir: takes them."""

import json
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertTokenizer

PREPROCESS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
OWN_VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8}
OWN_TEXT = {"width": 16, "heads": 2, "layers": 1}
TIMM_VISION = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
BERT_TEXT = {
    "hf_model_name": "nobody/bert-of-the-hub",
    "hf_tokenizer_name": "nobody/bert-of-the-hub",
    "hf_proj_type": "mlp",
    "hf_pooler_type": "cls_last_hidden_state_pooler",
    "context_length": 16,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "scan", "with", "benign", "."]


def write_clip(folder: Path, vision: dict[str, Any] = OWN_VISION) -> nn.Module:
    """A model whose two towers are open_clip's own, with the tokenizer that open_clip ships."""
    return _write(folder, CLIP, {"embed_dim": 24, "vision_cfg": vision, "text_cfg": OWN_TEXT}, {})


def write_biomed(folder: Path) -> nn.Module:
    """A model built like BiomedCLIP: an image tower of timm, a BERT of transformers and its tokenizer."""
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)
    bert = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    bert.save_pretrained(folder)
    words = {"embed_dim": 24, "vision_cfg": TIMM_VISION, "text_cfg": BERT_TEXT}
    return _write(folder, CustomTextCLIP, words, {"hf_model_name": str(folder), "hf_model_pretrained": False})


def _write(folder: Path, kind: type[nn.Module], words: dict[str, Any], text: dict[str, Any]) -> nn.Module:
    config = {"model_cfg": words, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    model = kind(**words | {"text_cfg": words["text_cfg"] | text}).eval()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return model


def tokens(folder: Path, prompts: list[str]) -> Any:
    return open_clip.get_tokenizer(f"local-dir:{folder}")(prompts)
