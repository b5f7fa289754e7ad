"""Image encoders from timm: any of its vision transformers as a tower, any other net as it is."""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_model_config_from_hf
from timm.models._builder import build_model_with_cfg
from timm.models._hub import load_model_config_from_path
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.kernels.rows import FrozenNorm
from fedsim.models.attention import Attention
from fedsim.models.hub import hub_access, user_errors
from fedsim.models.tower import Encoder, Tower
from fedsim.models.weights import check_kinds, in_float32, left_out_remarks, read_weights, under_names

#: Options that decide nothing here, and what does.
IDLE = {
    "num_classes": "the data",
    "img_size": "data.image_size",
    "dynamic_img_size": "data.image_size",
    "dynamic_img_pad": "data.image_size",
    "strict_img_size": "data.image_size",
    "in_chans": "nothing: images have three channels",
    "dtype": "model.precision",
    "device": "the machine",
    "features_only": "nothing: features are one vector per image",
}
#: Where a name has a network of its own from.
SOURCES = ("hf-hub:", "local-dir:")
#: Options of the initial values alone.
INITIAL = ("weight_init", "fix_init")


class TimmTower(Tower):
    """A timm VisionTransformer, or one of its subclasses that keeps its ``forward_features``.

    ``prefix`` is where the model sits in the library's whole model ("" when it is the whole); ``head``, if
    given, follows timm's own pooling (open_clip's projection), and ``head_path`` is its place.
    """

    rest: Any
    norms_before_products = ("norm1", "norm2")

    def __init__(self, model: Any, prefix: str = "", head: nn.Module | None = None, head_path: str = "") -> None:
        blocks = list(model.blocks)
        model.blocks = nn.Sequential()
        dot = "." if prefix else ""
        super().__init__(model, blocks, {"rest": prefix, "blocks": f"{prefix}{dot}blocks", "head": head_path})
        self.head = head or nn.Identity()

    @property
    def num_prefix_tokens(self) -> int:
        return int(self.rest.num_prefix_tokens)

    def stem(self, images: Tensor) -> Tensor:
        tokens = self.rest._pos_embed(self.rest.patch_embed(images))
        out: Tensor = self.rest.norm_pre(self.rest.patch_drop(tokens))
        return out

    def advance(self, block: Any, tokens: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor | None]:
        norms = isinstance(getattr(block, "norm1", None), FrozenNorm) and isinstance(block.norm2, FrozenNorm)
        if not (type(block) is Block and norms):
            return super().advance(block, tokens, branch)
        tokens, normal = block.norm1.of_sum(tokens, branch)
        tokens, normal = block.norm2.of_sum(tokens, block.drop_path1(block.ls1(block.attn(normal))))
        return tokens, block.drop_path2(block.ls2(block.mlp(normal)))

    def last_block(self, block: Any, tokens: Tensor) -> Tensor:
        plain = type(block) is Block and isinstance(block.attn, Attention)
        if not (plain and self._reads_class_token_only()):
            return super().last_block(block, tokens)
        first = tokens[:, :1] + block.drop_path1(block.ls1(block.attn.first_token(block.norm1(tokens))))
        out: Tensor = first + block.drop_path2(block.ls2(block.mlp(block.norm2(first))))
        return out

    def _reads_class_token_only(self) -> bool:
        own = type(self.rest)
        usual = own.forward_head is VisionTransformer.forward_head and own.pool is VisionTransformer.pool
        return usual and self.rest.global_pool == "token" and self.rest.attn_pool is None

    def finish(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.rest.forward_head(self.rest.norm(tokens)))
        return out


def is_sliceable(model: nn.Module) -> bool:
    """Whether TimmTower's three parts are the whole of the model's forward."""
    return (
        isinstance(model, VisionTransformer)
        and type(model).forward_features is VisionTransformer.forward_features
        and type(model).forward is VisionTransformer.forward
    )


def check_divides(image_size: int, patch_size: int, name: str) -> None:
    """UserError unless whole patches cover the image: libraries drop the other pixels without a word."""
    if image_size % patch_size:
        smaller = image_size // patch_size * patch_size
        sizes = [str(size) for size in (smaller, smaller + patch_size) if size]
        raise UserError(
            "data.image_size",
            f"{image_size} for {name} with patches of {patch_size} pixels",
            f"a multiple of {patch_size}, such as {' or '.join(sizes)}",
        )


def _check_known(name: str) -> None:
    if name.startswith(SOURCES):
        return
    architecture, _, tag = name.partition(".")
    if architecture in (known := timm.list_models()) and (not tag or name in timm.list_pretrained()):
        return
    near = difflib.get_close_matches(name, known + timm.list_pretrained(), n=4, cutoff=0.4)
    raise UserError("model.name", f"timm:{name}", f"a name that timm knows, such as {', '.join(near)}")


def _check_options(options: Collection[str], *, random: bool) -> None:
    """UserError for options that have no effect here, or another than on the network."""
    taken = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters}
    for name in options:
        if name in IDLE:
            raise UserError("model.options", name, f"no such option; what decides is {IDLE[name]}")
        if "drop" in name:
            raise UserError("model.options", name, "no dropout: a run draws all random numbers from its seed")
        if name in taken or (name in INITIAL and not random):
            raise UserError("model.options", name, "the network's own options; model.weights says what it starts with")


def _own_weights(
    name: str, path: Path, where: str, options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a file, but for those of whatever classifier it holds, and those that are no part of an encoder.

    UserError where none is left.
    """
    classifier = timm.get_pretrained_cfg(_architecture(name)).classifier
    heads = tuple(f"{head}." for head in ((classifier,) if isinstance(classifier, str) else classifier or ()))
    state = {key: tensor for key, tensor in in_float32(read_weights(path, where)).items() if not key.startswith(heads)}
    left_out: tuple[str, ...] = ()
    if path.suffix != ".safetensors":
        with torch.random.fork_rng(devices=[]), _creating(name):
            wanted = timm.create_model(name, **options).state_dict().keys()
        state, left_out = under_names(state, wanted, where)
    if not state:  # timm would take none for no file at all, and ask the hub
        raise UserError(where, "no tensor of an encoder", f"weights of timm:{name}")
    return state, left_out


def _architecture(name: str) -> str:
    """The architecture behind a name, which a folder or a hub name says itself."""
    source, colon, place = name.partition(":")
    if not colon:
        return name
    with _access(name):
        read = load_model_config_from_hf if source == "hf-hub" else load_model_config_from_path
        return str(read(place)[1])


def _access(name: str) -> AbstractContextManager[None]:
    """UserErrors for what fails inside; a folder holds all it needs, so the hub is not even asked."""
    where = f"model.name timm:{name}"
    if name.startswith("local-dir:"):
        return user_errors(where, "a folder with config.json and weights, as timm writes it")
    return hub_access(where, "a reachable model hub or its local cache; else model.weights: FILE or random")


def _creating(name: str) -> AbstractContextManager[None]:
    """UserErrors for options and weights that do not fit; the hub is asked for a hub's architecture alone."""
    if name.startswith("hf-hub:"):
        return _access(name)
    return user_errors(f"model timm:{name}", "options and weights that fit this model")


def timm_network(config: ModelConfig, image_size: int, class_names: Sequence[str]) -> nn.Module:
    """The timm model that a name with timm: in front asks for, as ``build_timm`` makes it."""
    del class_names
    return build_timm(config, config.name.removeprefix("timm:"), image_size)


def build_timm(config: ModelConfig, name: str, image_size: int) -> nn.Module:
    """The timm model ``name`` without classifier, in float32; initial values, where random, come from torch's global
    stream.
    """
    _check_known(name)
    _check_options(config.options, random=config.weights == "random")
    options: dict[str, Any] = dict(config.options)
    if timm.get_pretrained_cfg(_architecture(name)).fixed_input_size:
        options["img_size"] = image_size
    if config.weights is None:
        with _access(name):
            # with its own classifier the load is strict; timm forgives missing tensors when asked for none
            model: nn.Module = timm.create_model(name, pretrained=True, **options)
            model.reset_classifier(0)  # type: ignore[operator]  # every timm model has it
        return model
    options["num_classes"] = 0
    state: dict[str, Tensor] | None = None
    left_out: tuple[str, ...] = ()
    where = f"model.weights {config.weights}"
    if config.weights != "random":
        state, left_out = _own_weights(name, Path(config.weights), where, options)
        overlay = {"state_dict": state, "num_classes": 0, "label_offset": 0}
        options |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
    with _creating(name):
        model = timm.create_model(name, **options)
    ratio, width = options.get("mlp_ratio"), getattr(model, "embed_dim", None)
    if isinstance(ratio, int | float) and isinstance(width, int) and ratio * width < 1:
        # timm would take as many as the width
        raise UserError("model.options", f"mlp_ratio {ratio}", f"at least one neuron for a width of {width}")
    model.left_out = left_out  # type: ignore[assignment]  # for the encoder's remarks
    model.pretrained_cfg.pop("state_dict", None)  # type: ignore[union-attr,operator]  # a dict on timm models
    if state is not None:
        check_kinds(state, model, where)
    return model


def encoder_of_timm(model: Any, config: ModelConfig, image_size: int, class_names: Sequence[str]) -> Encoder:
    """Wrap a timm model without classifier: a TimmTower where it allows it, else as it is."""
    del class_names
    cfg, name = model.pretrained_cfg, config.name
    if is_sliceable(model):
        check_divides(image_size, model.patch_embed.feat_ratio(), name)
    width = feature_width(model.eval(), image_size, name)
    net = TimmTower(model) if is_sliceable(model) else model
    remarks = left_out_remarks(getattr(model, "left_out", ()))
    return Encoder(net.eval(), width, tuple(cfg["mean"]), tuple(cfg["std"]), image_size, remarks=remarks)


def feature_width(features: Callable[[Tensor], Any], image_size: int, name: str) -> int:
    """Width of the features of one image, from a trial run of a library's own network, which is in eval mode.

    UserError where images or features do not fit.
    """
    where, expected = (
        f"model.name {name}",
        f"a model for images of {image_size} x {image_size} that pools its features",
    )
    with torch.no_grad(), user_errors(where, expected):
        shape = tuple(features(torch.zeros(1, 3, image_size, image_size)).shape)
    if len(shape) != 2:
        raise UserError(where, f"features of shape {shape}", expected)
    return int(shape[1])
