"""DEeR's noise regulator: noise on one LoRA factor of a shape that the other factor does not amplify.

The product B A is what counts. Noise (B'B)^-1 B' W on A moves it by a projection of W alone, whatever B is; likewise
W A' (A A')^-1 on B.

Shapes: K clients in a block, G slices of a layer, R rank, D input width, O output width of a slice.
Source: Zhu et al., DEeR, IEEE TMI 2024, section III, as far as its abstract and code tell.
"""

import torch
from torch import Tensor

from fedsim.algorithms.base import ServerState, Tensors
from fedsim.errors import UserError
from fedsim.privacy.client_level import ClientLevelLayer
from fedsim.privacy.messages import param_of

A, B = ".lora_a", ".lora_b"
# Of a Gram matrix an eigenvalue is zero when it is that small beside the largest one.
RELATIVE_ZERO = 1e-10


class WhitenedRegulator(ClientLevelLayer):
    """The regulated noise with a sensitivity that is real: clipped is what the noise is white in.

    With a common B, noise (B'B)^-1 B' W on A has the law of (B'B)^(-1/2) N. So a client clips (B'B)^(1/2) dA, whose
    norm is that of its change of the product, ||B dA||, and the server turns the noisy sum back. What the peer factor
    does not let through (all of it where B is zero) changes no product, and is left out.
    """

    def to_clip(self, state: ServerState, message: Tensors) -> Tensors:
        return {key: self._turned(state, key, value, 0.5) for key, value in message.items()}

    def from_noisy(self, state: ServerState, sums: Tensors) -> Tensors:
        return {key: self._turned(state, key, value, -0.5) for key, value in sums.items()}

    def _turned(self, state: ServerState, key: str, value: Tensor, power: float) -> Tensor:
        """Multiply a factor's side of rank by a power of its peer's Gram matrix, zero where that has no inverse."""
        name = param_of(key) or ""
        peer = peer_of(name)
        if peer is None:
            return value
        require_whole(name, value, state.params[name])
        if state.round > 0 and not state.params[peer].any():
            found = f"noise_regulator with a {peer} that stays zero on the server, so that nothing of {name} counts"
            raise UserError("privacy.mechanism", found, "client, or a method whose clients keep no factor")
        root = _power(gram(peer, state.params[peer]), power)
        return root @ value if key.endswith(A) else value @ root


def peer_of(name: str) -> str | None:
    """Return the name of a LoRA factor's other factor; None for other parameters."""
    for own, other in ((A, B), (B, A)):
        if name.endswith(own):
            return name.removesuffix(own) + other
    return None


def require_whole(name: str, sent_K: Tensor, whole: Tensor) -> None:
    """UserError for a factor of which clients send some ranks alone: the others have a part in its peer's shape."""
    if sent_K.shape[-3:] != whole.shape[-3:]:
        found = f"noise_regulator with a method that sends a part of {name}"
        raise UserError("privacy.mechanism", found, "client, or a method that sends whole factors")


def gram(name: str, factor: Tensor) -> Tensor:
    """Return A A' of a factor A (..., G, R, D), or B'B of a factor B (..., G, O, R), float64 (..., G, R, R)."""
    exact = factor.double()
    return exact @ exact.transpose(-1, -2) if name.endswith(A) else exact.transpose(-1, -2) @ exact


def _power(gram_GRR: Tensor, power: float) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(gram_GRR)
    tiny = torch.finfo(gram_GRR.dtype).tiny
    is_zero = eigenvalues <= RELATIVE_ZERO * eigenvalues.amax(-1, keepdim=True).clamp(min=tiny)
    powers = torch.where(is_zero, 0.0, eigenvalues.clamp(min=tiny) ** power)
    root: Tensor = (vectors * powers[..., None, :]) @ vectors.transpose(-1, -2)
    return root
