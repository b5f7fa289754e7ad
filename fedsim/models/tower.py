"""What every encoder of images or texts is to the rest of fedsim.

Shapes: N images or texts, T tokens, D width of the tokens, W width of the features, C classes. Of an image's tokens P
are patches, behind those of the class and registers; L blocks are read.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from fedsim.kernels.rows import replace_rows
from fedsim.models.attention import replace_attention
from fedsim.models.decoder.nets import Decoder

Part = TypeVar("Part", bound=nn.Module)


class Adaptable(nn.Module):
    """A library's model, or one made of its parts, in which layers may be replaced by such with LoRA."""

    #: How the features come out of the library's own ``model``, in Python. An open_clip tower is a part.
    library_features = "model(images)"

    def source_path(self, path: str) -> str:
        """The dotted path that the library's own model gives to our module ``path``."""
        raise NotImplementedError

    def targets(self, paths: list[str]) -> list[str] | str:
        """How peft's ``target_modules`` says these paths in the library's own model, and no others."""
        return paths


class Tower(Adaptable):
    """A transformer cut in three: ``forward(x) = finish(blocks(stem(x)))``.

    Where ``finish`` reads the class token alone, the last block computes nothing else after its attention.

    The blocks are the library's own modules, in order, each mapping (N, T, D) to (N, T, D), with our
    attention inside. The library's model without its blocks stays behind as ``rest`` and computes both ends,
    so every variant of position, class token, register and pooling remains the library's.
    """

    #: The blocks, from 0, after which a decoder reads the patches' tokens; none: the tower gives features.
    reads: tuple[int, ...] = ()

    #: LayerNorms, children of a block, whose output nothing but frozen products reads.
    norms_before_products: tuple[str, ...] = ()

    def __init__(self, rest: nn.Module, blocks: Iterable[nn.Module], source_path: dict[str, str]) -> None:
        super().__init__()
        self.rest = rest
        self.blocks = nn.ModuleList(blocks)
        replace_attention(self.blocks)
        self._source_path = source_path

    def stem(self, inputs: Tensor) -> Tensor:
        """All that precedes the first block: (N, 3, height, width) normalised images to (N, T, D) tokens.

        A tower for texts leaves its inputs (N, 2, T) as they are and looks the tokens up in ``encode``: where a text
        ends must be known in every block.
        """
        raise NotImplementedError

    def finish(self, tokens: Tensor) -> Tensor:
        """All that follows the last block: (N, T, D) tokens to (N, W) features."""
        raise NotImplementedError

    def advance(self, block: Any, tokens: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One block on the sum of ``tokens`` and ``branch``, whose output may be left as such a sum.

        The next LayerNorm then adds them up in its own pass over the tokens.
        """
        return block(tokens if branch is None else tokens + branch), None

    def last_block(self, block: Any, tokens: Tensor) -> Tensor:
        """The last block, for those tokens at least that ``finish`` reads: (N, T, D) to (N, up to T, D)."""
        out: Tensor = block(tokens)
        return out

    @property
    def num_prefix_tokens(self) -> int:
        """The tokens in front of an image's patches."""
        return 1

    def patches(self, tokens: Tensor) -> Tensor:
        """The patches' tokens after the blocks that are read, (N, L, P, D), as they leave them, from the stem's."""
        found, branch = [], None
        for number, block in enumerate(self.blocks[: self.reads[-1] + 1]):
            tokens, branch = self.advance(block, tokens, branch)
            if number in self.reads:
                tokens, branch = tokens if branch is None else tokens + branch, None
                found.append(tokens[:, self.num_prefix_tokens :])
        return torch.stack(found, 1)

    def encode(self, tokens: Tensor, *, every_token: bool = False) -> Tensor:
        """All that follows the stem: (N, T, D) tokens to (N, W) features, or to ``patches`` where blocks are read.

        ``every_token``: the last block, too, computes all tokens, for those who look inside.
        """
        if self.reads:
            return self.patches(tokens)
        *body, last = self.blocks
        branch = None
        for block in body:
            tokens, branch = self.advance(block, tokens, branch)
        tokens = tokens if branch is None else tokens + branch
        return self.finish(last(tokens) if every_token else self.last_block(last, tokens))

    def compile_rows(self) -> None:
        """Put our GELU and LayerNorm in place of the library's, in blocks whose norms never train."""
        for block in self.blocks:
            replace_rows(block, self.norms_before_products)

    def states(self, tokens: Tensor) -> list[Tensor]:
        """Every block's output, (N, T, D) each, from the stem's."""
        found = []
        for block in self.blocks:
            tokens = block(tokens)
            found.append(tokens)
        return found

    def own_tokens(self, tokens: Tensor) -> Tensor:
        """Which of the stem's tokens are an input's own, bool (N, T): all but the padding of a text."""
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)

    def with_blocks(self, blocks: Iterable[nn.Module]) -> Self:
        """The same tower around other blocks; nothing is copied, both ends are shared."""
        other = shallow_copy(self)
        other.blocks = nn.ModuleList(blocks)
        return other

    def forward(self, inputs: Tensor) -> Tensor:
        return self.encode(self.stem(inputs))

    def source_path(self, path: str) -> str:
        first, _, inner = path.partition(".")
        return ".".join(part for part in (self._source_path[first], inner) if part)


def shallow_copy(module: Part) -> Part:
    """A module of its own around the same parts, which may then be exchanged in it."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied


@dataclass(frozen=True)
class Encoder:
    """A frozen or trainable encoder with what its inputs and its classifier need.

    ``net`` maps (N, 3, image_size, image_size) float images, normalised by ``mean`` and ``std`` (of values in
    0..1), to (N, width) features. It is in eval mode; its parameters require gradients only with ``train:
    all``. ``text_features`` (C, width), rows of norm one, and ``logit_scale``, the natural logarithm of the
    factor before the cosine, belong to the text classifier and are None without it. ``seed`` is what random
    weights were drawn from. ``head_bias``: whether the linear classifier has a bias. ``per_pixel``: ``net`` gives
    the scores of every pixel itself, (N, width, image_size, image_size), and no classifier follows. ``decoder``: what
    scores pixels in a classifier's place, with random weights; ``net`` is then a tower whose blocks are read.
    ``sha256``: the digest of the tensors of a network named by its import path, None for others. ``frozen_sha256``:
    what tells weights that stay frozen from others: the digest of their files, or ``sha256``; None where nothing is
    frozen, and for what a library or fedsim itself has a version of. ``remarks``: lines for the person who starts a
    run.

    ``slices``: how many slices an input has where these are volumes; ``net`` sees one slice at a time and the mean of
    their features is the volume's. None where inputs are images or texts. ``whole_volumes``: ``net`` sees a volume as
    one grey input, (N, 1, slices, image_size, image_size), instead.

    For texts ``tokenizer``, a fast tokenizer of Hugging Face's, tells what the numbers (N, 2, T) mean that ``net``
    takes: token ids, -1 after a text's end, and segments; ``mean``, ``std`` and ``image_size`` are then idle.
    """

    net: nn.Module
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    text_features: Tensor | None = None
    logit_scale: float | None = None
    seed: int = 0
    head_bias: bool = True
    per_pixel: bool = False
    tokenizer: Any | None = None
    sha256: str | None = None
    frozen_sha256: str | None = None
    slices: int | None = None
    whole_volumes: bool = False
    decoder: Decoder | None = None
    remarks: tuple[str, ...] = ()

    @property
    def slices_apart(self) -> int | None:
        """How many slices of a volume ``net`` sees one at a time; None where it sees images, texts or whole volumes."""
        return None if self.whole_volumes else self.slices

    @property
    def scores_pixels(self) -> bool:
        """Whether every pixel gets scores, from ``net`` or a decoder."""
        return self.per_pixel or self.decoder is not None

    @property
    def tower(self) -> Tower | None:
        """``net`` with its stem, blocks and finish; None for a net that has none, which trains whole or head
        only.
        """
        return self.net if isinstance(self.net, Tower) else None

    @property
    def adaptable(self) -> Adaptable:
        """``net`` with the places of its layers in the library's own model; ``load_encoder`` sees to it with LoRA."""
        assert isinstance(self.net, Adaptable), "load_encoder makes it one"
        return self.net


def one_channel(volumes_NSCHW: Tensor) -> Tensor:
    """Return grey volumes (N, S, 3, H, W), whose channels are equal, as (N, 1, S, H, W)."""
    return volumes_NSCHW[:, :, :1].transpose(1, 2)
