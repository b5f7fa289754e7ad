"""Folders that a library takes in silence, or refuses with any of its exceptions: one line each."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.encoders import Encoder, load_encoder
from tests.unit.models.models_clip_folders import BERT_TEXT, OWN_TEXT, OWN_VISION, write_biomed, write_clip
from tests.unit.models.models_hugging_folders import write_hugging

CLASSES = ["benign scan", "scan"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any) -> str:
        raise AssertionError("a question on standard input")

    monkeypatch.setattr(builtins, "input", ask)


def hugging(folder: Path, size: int = 16) -> Encoder:
    return load_encoder(ModelConfig(name=f"hf:{folder}", train="head"), size, CLASSES, 0)


def clip(folder: Path, class_names: list[str] = CLASSES) -> Encoder:
    return load_encoder(ModelConfig(name=f"open_clip:local-dir:{folder}", train="all"), 32, class_names, 0)


def refused(load: Callable[[Path], Encoder], folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("bert", {"num_attention_heads": 0}, "ZeroDivisionError"),
        ("bert", {"hidden_size": "32"}, "hidden_size"),
        ("bert", {"hidden_size": None}, "hidden_size"),
        ("bert", {"vocab_size": 5}, r"word_embeddings\.weight of shape \(12, 32\); expected \(5, 32\)"),
        ("bert", {"pad_token_id": None}, "pad_token_id None"),
        ("bert", {"num_hidden_layers": 0}, "no transformer block"),
        ("bert", {"hidden_act": "loud"}, "loud"),
        ("bert", {"is_decoder": True}, "is_decoder: true"),
        ("roberta", {"is_decoder": True}, "is_decoder: true"),
        ("vit", {"patch_size": 0}, "ZeroDivisionError"),
        ("vit", {"patch_size": 5}, r"\.weight of shape \(32, 3, 8, 8\); expected \(32, 3, 5, 5\)|shape \(1, 5, 32\)"),
        ("vit", {"num_channels": 1}, r"\.weight of shape \(32, 3, 8, 8\)"),
        ("vit", {"num_attention_heads": 0}, "ZeroDivisionError"),
    ],
)
def test_settings_that_make_no_network(tmp_path: Path, kind: str, changes: dict[str, Any], words: str) -> None:
    write_hugging(tmp_path, kind)
    edit(tmp_path / "config.json", **changes)
    refused(hugging, tmp_path, words)


def test_weights_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for write, load, name in (
        (write_hugging, hugging, "model.safetensors"),
        (write_clip, clip, "open_clip_model.safetensors"),
    ):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        (tmp_path / name / name).write_bytes(b"[]")
        refused(load, tmp_path / name, rf"{name}: {name}: found SafetensorError: .*; expected a safetensors file")


def test_a_vocabulary_smaller_than_the_tokenizers(tmp_path: Path) -> None:
    write_hugging(tmp_path, vocab_size=5)
    refused(hugging, tmp_path, "token ids up to 11 with 5 embeddings")


def test_layers_without_an_element(tmp_path: Path) -> None:
    write_hugging(tmp_path)
    edit(tmp_path / "config.json", intermediate_size=0)
    config = ModelConfig(name=f"hf:{tmp_path}", train="head", weights="random")
    with pytest.raises(UserError, match=r"tensor encoder\.layer\.0\..* of shape \(0, 32\); expected layers with"):
        load_encoder(config, 16, CLASSES, 0)


@pytest.mark.parametrize("content", ["[]", "3", "{", '"text"', "[" * 100_000])
@pytest.mark.parametrize(
    ("kind", "name"), [("bert", "1_Pooling/config.json"), ("vit", "preprocessor_config.json"), ("bert", "config.json")]
)
def test_files_beside_the_weights_are_objects(tmp_path: Path, kind: str, name: str, content: str) -> None:
    write_hugging(tmp_path, kind)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / name).write_text(content)
    refused(hugging, tmp_path, f"{name}.*expected an object")


@pytest.mark.parametrize("mean", ["abc", [0.5], 0.5, [0.1, 0.2, "x"], [float("nan")] * 3])
def test_a_normalisation_is_of_three_numbers(tmp_path: Path, mean: Any) -> None:
    (tmp_path / "vit").mkdir()
    write_hugging(tmp_path / "vit", "vit")
    edit(tmp_path / "vit" / "preprocessor_config.json", image_mean=mean)
    refused(hugging, tmp_path / "vit", "three numbers each")
    (tmp_path / "clip").mkdir()
    write_clip(tmp_path / "clip")
    edit(tmp_path / "clip" / "open_clip_config.json", preprocess_cfg={"mean": mean, "std": [0.5] * 3})
    refused(clip, tmp_path / "clip", "three numbers each")


@pytest.mark.parametrize(
    ("name", "value"), [("do_rescale", False), ("rescale_factor", 1 / 127.5), ("do_normalize", False)]
)
def test_images_of_other_values_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    write_hugging(tmp_path, "vit")
    usual = {"do_rescale": True, "rescale_factor": 0.00392156862745098, "do_normalize": True, "image_mean": [0.5] * 3}
    edit(tmp_path / "preprocessor_config.json", **usual)
    assert hugging(tmp_path).mean == (0.5, 0.5, 0.5)
    edit(tmp_path / "preprocessor_config.json", **{name: value})
    refused(hugging, tmp_path, f"{name}: ")


@pytest.mark.parametrize("modes", [["max_tokens"], ["mean_tokens", "cls_token"], []])
def test_another_pooling_than_mean_or_first_token(tmp_path: Path, modes: list[str]) -> None:
    write_hugging(tmp_path)
    edit(tmp_path / "1_Pooling" / "config.json", **{f"pooling_mode_{mode}": True for mode in modes})
    refused(hugging, tmp_path, "expected one of pooling_mode_mean_tokens, pooling_mode_cls_token")


@pytest.mark.parametrize("keep", [(), ("tokenizer_config.json",)])
@pytest.mark.parametrize("kind", ["bert", "roberta", "biomed"])
def test_a_folder_without_the_tokenizers_words(tmp_path: Path, kind: str, keep: tuple[str, ...]) -> None:
    """The library makes a tokenizer of special tokens alone, for which all texts of as many words are the same."""
    if kind == "biomed":
        write_biomed(tmp_path)
    else:
        write_hugging(tmp_path, kind)
    for name in set(TOKENIZER_FILES) - set(keep):
        (tmp_path / name).unlink(missing_ok=True)
    edit(
        tmp_path / "tokenizer_config.json", tokenizer_class="RobertaTokenizer" if kind == "roberta" else "BertTokenizer"
    )
    if not keep:
        (tmp_path / "tokenizer_config.json").unlink()
    load = clip if kind == "biomed" else hugging
    refused(load, tmp_path, r"a tokenizer without words, of \d special tokens; expected .*tokenizer\.json.*vocab")


def test_the_helpers_tokenizer_has_words(tmp_path: Path) -> None:
    write_biomed(tmp_path)
    found = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a benign scan"])
    assert found[0].tolist()[:6] == [2, 5, 10, 8, 3, 0]


def test_class_names_that_the_tokenizer_does_not_tell_apart(tmp_path: Path) -> None:
    write_biomed(tmp_path)
    with pytest.raises(UserError, match="the same tokens for the prompts of glioma and meningioma"):
        clip(tmp_path, ["scan", "glioma", "meningioma"])


@pytest.mark.parametrize("model_type", ["bert", "nobodys"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["bert", "biomed"])
def test_custom_code_is_refused_and_nobody_is_asked(tmp_path: Path, kind: str, name: str, model_type: str) -> None:
    if kind == "biomed":
        write_biomed(tmp_path)
    else:
        write_hugging(tmp_path, kind)
    edit(tmp_path / "config.json", model_type=model_type)
    auto_map = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.Words", None]}
    edit(tmp_path / name, auto_map=auto_map)
    (tmp_path / "own.py").write_text("raise SystemExit('code of the folder ran')")
    load = clip if kind == "biomed" else hugging
    refused(load, tmp_path, rf"custom code \(auto_map in {name}\)|nobodys")


def test_a_folder_cannot_trust_itself(tmp_path: Path) -> None:
    """Its config may name arguments of the tokenizer, this one too."""
    write_biomed(tmp_path)
    words = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    words["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    edit(tmp_path / "open_clip_config.json", model_cfg=words)
    assert clip(tmp_path).text_features is not None
    edit(tmp_path / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Words", None]})
    (tmp_path / "own.py").write_text("raise SystemExit('code of the folder ran')")
    refused(clip, tmp_path, "custom code")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_cfg": []}, "vision_cfg and text_cfg"),
        ({"vision_cfg": None}, "vision_cfg and text_cfg"),
        ({"text_cfg": OWN_TEXT | {"vocab_size": 1000}}, "size mismatch"),
        ({"text_cfg": OWN_TEXT | {"heads": 0}}, "heads"),
        ({"vision_cfg": OWN_VISION | {"head_width": 0}}, "ZeroDivisionError"),
        ({"vision_cfg": OWN_VISION | {"patch_size": 0}}, "ZeroDivisionError"),
        ({"vision_cfg": OWN_VISION | {"layers": 0}}, "no transformer block|Unexpected key"),
        ({"embed_dim": "24"}, "TypeError"),
    ],
)
def test_a_clip_config_that_makes_no_network(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_clip(tmp_path)
    model = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    edit(tmp_path / "open_clip_config.json", model_cfg=model | changes)
    refused(clip, tmp_path, words)


@pytest.mark.parametrize("model_cfg", [[], 3, "vision_cfg text_cfg"])
def test_a_clip_config_that_is_no_section(tmp_path: Path, model_cfg: Any) -> None:
    write_clip(tmp_path)
    edit(tmp_path / "open_clip_config.json", model_cfg=model_cfg)
    refused(clip, tmp_path, "a config without vision_cfg and text_cfg, or other than as sections")


def test_a_clip_vocabulary_smaller_than_the_tokenizers(tmp_path: Path) -> None:
    write_clip(tmp_path)
    model = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    edit(tmp_path / "open_clip_config.json", model_cfg=model | {"text_cfg": OWN_TEXT | {"vocab_size": 1000}})
    config = ModelConfig(name=f"open_clip:local-dir:{tmp_path}", weights="random", train="all")
    with pytest.raises(UserError, match=r"token id 49407 with 1000 embeddings; expected the model's own tokenizer"):
        load_encoder(config, 32, CLASSES, 0)


def test_a_clip_text_tower_with_fewer_positions_than_tokens(tmp_path: Path) -> None:
    write_biomed(tmp_path)
    words = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    words["text_cfg"] = BERT_TEXT | {"context_length": 30}
    edit(tmp_path / "open_clip_config.json", model_cfg=words)
    refused(clip, tmp_path, "Error")


def test_clip_weights_that_are_no_safetensors_are_not_opened(tmp_path: Path) -> None:
    write_clip(tmp_path)
    (tmp_path / "open_clip_model.safetensors").rename(tmp_path / "open_clip_pytorch_model.bin")
    refused(clip, tmp_path, r"open_clip_pytorch_model\.bin; expected open_clip_model\.safetensors")


class TestQuickGelu:
    """Two names, one network but for the activation: of a file only what OpenAI's look like can be known."""

    @pytest.fixture(autouse=True)
    def names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        words = {"embed_dim": 24, "vision_cfg": OWN_VISION, "text_cfg": OWN_TEXT}
        for name, is_quick in (("small", False), ("small-quickgelu", True)):
            monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, {**words, "quick_gelu": is_quick})

    def load(self, name: str, weights: str) -> Encoder:
        config = ModelConfig(name=f"open_clip:{name}", weights=weights, train="all")
        return load_encoder(config, 32, CLASSES, 0)

    def write(self, folder: Path, change: Callable[[str, Tensor], Tensor], **more: Tensor) -> str:
        write_clip(folder)
        file = folder / "open_clip_model.safetensors"
        save_file({name: change(name, tensor) for name, tensor in load_file(file).items()} | more, file)
        return str(file)

    @staticmethod
    def halved(name: str, tensor: Tensor) -> Tensor:
        is_product = "resblocks" in name and ".ln_" not in name and name.endswith("weight")
        return tensor.half().float() if is_product else tensor

    def test_openai_weights_by_path(self, tmp_path: Path) -> None:
        file = self.write(tmp_path, self.halved)
        with pytest.raises(UserError, match=r"OpenAI's weights.*expected model\.name: open_clip:small-quickgelu"):
            self.load("small", file)
        net = self.load("small-quickgelu", file).net
        assert any(isinstance(part, QuickGELU) for part in net.modules())

    def test_openai_weights_with_the_numbers_of_their_archive(self, tmp_path: Path) -> None:
        file = self.write(tmp_path, lambda _, tensor: tensor, input_resolution=torch.tensor(32))
        with pytest.raises(UserError, match="open_clip:small-quickgelu"):
            self.load("small", file)

    @pytest.mark.parametrize("change", [lambda _, tensor: tensor, lambda _, tensor: tensor.half().float()])
    def test_other_weights(self, tmp_path: Path, change: Callable[[str, Tensor], Tensor]) -> None:
        assert self.load("small", self.write(tmp_path, change)).width == 24

    @pytest.mark.parametrize("tag", ["openai", "metaclip_400m", "laion400m_e32"])
    def test_a_tag(self, tag: str) -> None:
        words = rf"model\.weights {tag}: found .*QuickGELU.*expected model\.name: open_clip:ViT-B-32-quickgelu"
        with pytest.raises(UserError, match=words):
            self.load("ViT-B-32", tag)
