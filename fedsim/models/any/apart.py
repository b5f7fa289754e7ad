"""A trial of a network whose parts are not known: what it makes of an image must not depend on the others of a batch.

Blocks of clients, batches of an evaluation and the images that ``predict`` is given are cut as the machine likes. Two
images go through the network together and each alone, in the modes that a run has it in. BatchNorm of a network that
trains whole is known to mix, and such batches are kept apart; LoRA's trial is ``probe.py``.

Shapes: N images or volumes, S slices.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedsim.catalogue.functions import is_import_path
from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.any.probe import in_mode
from fedsim.models.hub import user_errors
from fedsim.models.tower import Encoder
from fedsim.models.whole_net import norms_mix

#: Relative to the largest value: what rounding to float32 leaves, and to bf16, in which a network may compute inside.
SAME, SAME_IN_BF16 = 1e-4, 0.1
EXPECTED = "one that treats each image by itself, but for BatchNorm with train: all"


def check_apart(encoder: Encoder, config: ModelConfig) -> None:
    """UserError where the encoder's output for an image depends on the others of its batch, or on chance.

    The network is on the CPU and in float32. It is in eval mode afterwards; its buffers, its parameters and torch's
    global random stream are as before.
    """
    if not _is_unknown(encoder, config):
        return
    whole = config.train == "all"
    alone: Tensor | None = None
    for training in (False, True) if whole else (False,):
        if not (whole and norms_mix(encoder.net, training=training)):
            alone = _Trial(encoder, config, training=training).check(alone)


def _is_unknown(encoder: Encoder, config: ModelConfig) -> bool:
    """Whether parts of the network are nobody's that is known here, and no other trial looks at it.

    Our towers are of known blocks. The catalogue's networks for volumes are MONAI's, of which BatchNorm alone mixes; a
    pass of theirs takes seconds.
    """
    own = is_import_path(config.name)
    if encoder.tower is not None:
        return own
    return config.train != "lora" and (own or not encoder.whole_volumes)


class _Trial:
    """A network in one of its modes, and three random inputs."""

    def __init__(self, encoder: Encoder, config: ModelConfig, *, training: bool) -> None:
        self.net, self.training = encoder.net, training
        self.where = f"model.name {config.name}"
        size = encoder.image_size
        shape = (1, encoder.slices or size, size, size) if encoder.whole_volumes else (3, size, size)
        self.images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))

    def check(self, known: Tensor | None) -> Tensor:
        """Return the output for two inputs, each alone; ``known``: that of another mode, mostly the same."""
        with torch.random.fork_rng(devices=[]), torch.no_grad(), in_mode(self.net, training=self.training):
            together = self._run(0, 1)
            if known is not None and _near(together, known, SAME):
                return known
            alone = torch.cat([self._run(0), self._run(1)])
            if _near(together, alone, SAME):
                return alone
            mode = "train mode" if self.training else "eval mode"
            if not torch.equal(together, self._run(0, 1)):
                found = f"a network whose output is another each time in {mode}"
                raise UserError(self.where, found, "none: a run draws all random numbers from its seed")
            # Beside another image the sums are the same, so that rounding makes no difference.
            beside = torch.cat([self._run(0, 2)[:1], self._run(2, 1)[1:]])
            if not (_near(together, beside, SAME) and _near(together, alone, SAME_IN_BF16)):
                found = f"a network whose output for an image depends on the other images of its batch in {mode}"
                raise UserError(self.where, found, EXPECTED)
            return alone

    def _run(self, *numbers: int) -> Tensor:
        """The output for some of the inputs, as one batch."""
        images = self.images[list(numbers)]
        with user_errors(self.where, "a network through which one image goes, and two"), _kept(self.net):
            out: object = self.net(images)
        if not isinstance(out, Tensor) or out.shape[:1] != (len(numbers),):
            found = f"of shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"of type {type(out).__name__}"
            raise UserError(self.where, f"outputs {found} for a batch of {len(numbers)}", "a tensor, images first")
        return out


@contextmanager
def _kept(net: nn.Module) -> Iterator[None]:
    """Give a network's buffers their values back; ``functional_call`` would not take one out of torch.jit."""
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in net.named_buffers():
            if name in kept and not torch.equal(buffer, kept[name]):
                buffer.copy_(kept[name])


def _near(found: Tensor, expected: Tensor, most: float) -> bool:
    if found.shape != expected.shape:
        return False
    scale = torch.maximum(found.abs().max(), expected.abs().max())
    return not bool((found - expected).abs().max() > most * scale)
