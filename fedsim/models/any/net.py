"""A library's network as it is, of which the features are read.

Shapes: N images, T tokens, W feature width.
"""

import re
from typing import Any

from torch import Tensor, nn

from fedsim.models.tower import Adaptable

#: How features are read out of what a network gives, beside the tensor itself: what a library's README would say.
POOLED = ".pooler_output"
POOLED_PIXEL = ".pooler_output.flatten(1)"
MEAN_OF_PIXELS = ".last_hidden_state.mean((2, 3))"


class LibraryNet(Adaptable):
    """A network, (N, 3, height, width) normalised images to features (N, W), or to scores of every pixel.

    ``reads``: one of the constants above where ``net`` gives a record of Hugging Face's; "" where it gives a tensor.
    """

    def __init__(self, net: nn.Module, reads: str = "") -> None:
        super().__init__()
        self.net = net
        self.reads = reads
        self.library_features = f"model(images){reads}"

    def forward(self, images: Tensor) -> Tensor:
        return read(self.net(images), self.reads)

    def source_path(self, path: str) -> str:
        return path.removeprefix("net.")

    def targets(self, paths: list[str]) -> list[str] | str:
        # peft takes a name for the end of others, too, and a text for a pattern of whole paths.
        dotted = tuple(f".{path}" for path in paths)
        is_end = any(f".{name}".endswith(dotted) for name, _ in self.net.named_modules() if name not in paths)
        return "|".join(map(re.escape, paths)) if is_end else paths


def read(output: Any, reads: str) -> Tensor:
    """Return the tensor that one of the constants above reads out of a network's output."""
    if reads == POOLED:
        return output.pooler_output  # type: ignore[no-any-return]  # the libraries' records are not typed
    if reads == POOLED_PIXEL:
        return output.pooler_output.flatten(1)  # type: ignore[no-any-return]  # as above
    if reads == MEAN_OF_PIXELS:
        return output.last_hidden_state.mean((2, 3))  # type: ignore[no-any-return]  # as above
    return output  # type: ignore[no-any-return]  # as above
