"""The one self-attention of fedsim, put in place of timm's, Hugging Face's and torch's nn.MultiheadAttention.

Whatever a library calls its projections, here they are the nn.Linear modules ``qkv`` (rows: all of q, then k,
then v) and ``proj``, so that LoRA and a faster kernel have a single place to act on.

Shapes: N images, T tokens, D width, H heads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.kernels import attention as compiled
from fedsim.kernels.frozen import FrozenLinear, frozen_linear
from fedsim.machine.loading import loaded
from fedsim.models.lora import LoRALinear


class Attention(nn.Module):
    """Multi-head self-attention over (N, T, D) tokens; called as timm's blocks call theirs.

    ``q_norm`` and ``k_norm`` act per head (qk norm), ``norm`` acts before ``proj`` (scale norm); Identity
    where unused. ``attn_drop`` is a probability, effective in training mode only. An ``attn_mask`` bool (N, 1, 1, T)
    is true for the tokens that may be attended to; other forms are those of torch's scaled_dot_product_attention.
    """

    def __init__(
        self,
        qkv: nn.Linear,
        proj: nn.Module,
        num_heads: int,
        *,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        norm: nn.Module | None = None,
        proj_drop: nn.Module | None = None,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.qkv = qkv
        self.proj = proj
        self.q_norm = q_norm or nn.Identity()
        self.k_norm = k_norm or nn.Identity()
        self.norm = norm or nn.Identity()
        self.proj_drop = proj_drop or nn.Identity()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        projected = self.qkv(x)
        if not is_causal and self._compiles(projected, 3, attn_mask):
            return self._compiled(None, projected, 3, attn_mask)
        q, k, v = self._heads(projected, 3)
        return self._attend(q, k, v, attn_mask, is_causal)

    def first_token(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """The output of the first token alone, (N, 1, D), which attends to all tokens that the mask leaves."""
        queries, projected = slices_of(self.qkv, x[:, :1], 0, 1), slices_of(self.qkv, x, 1, 3)
        if self._compiles(projected, 2, attn_mask):
            return self._compiled(queries.unflatten(2, (self.num_heads, -1)), projected, 2, attn_mask)
        (q,), (k, v) = self._heads(queries, 1), self._heads(projected, 2)
        return self._attend(q, k, v, attn_mask)

    def _compiles(self, projected: Tensor, num_slices: int, attn_mask: Tensor | None) -> bool:
        plain = isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity)
        over_tokens = (len(projected), 1, 1, projected.shape[1])
        masked = attn_mask is None or (attn_mask.dtype == torch.bool and attn_mask.shape == over_tokens)
        width = projected.shape[2] // (num_slices * self.num_heads)
        return plain and masked and not (self.training and self.attn_drop) and compiled.suits(projected, width)

    def _compiled(self, queries: Tensor | None, projected: Tensor, num_slices: int, mask: Tensor | None) -> Tensor:
        slices = projected.unflatten(2, (num_slices, self.num_heads, -1))
        return self._finish(compiled.CompiledAttention.apply(queries, slices, mask))

    def _heads(self, projected: Tensor, num_slices: int) -> tuple[Tensor, ...]:
        """(N, T, slices * D) to that many (N, H, T, D / H)."""
        heads = projected.reshape(*projected.shape[:2], num_slices, self.num_heads, -1)
        return heads.permute(2, 0, 3, 1, 4).unbind(0)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        q, k, dropout = self.q_norm(q), self.k_norm(k), self.attn_drop if self.training else 0.0
        plain = attn_mask is None and not is_causal and not dropout
        if plain and q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16:
            # The fused kernel's backward pass in bf16 takes two to five times as long here (benchmarks/LOG.md).
            scores = (q * q.shape[-1] ** -0.5) @ k.mT
            heads_NHTC = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
        else:
            heads_NHTC = F.scaled_dot_product_attention(
                q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal
            )
        return self._finish(heads_NHTC.transpose(1, 2))

    def _finish(self, heads_NTHC: Tensor) -> Tensor:
        out: Tensor = self.proj_drop(self.proj(self.norm(heads_NTHC.flatten(2))))
        return out


def slices_of(layer: nn.Module, x: Tensor, start: int, stop: int) -> Tensor:
    """Slices ``start`` to ``stop`` of the three that a fused qkv, plain or adapted, makes of ``x``."""
    if isinstance(layer, LoRALinear):
        return layer.slices_of(x, start, stop)
    assert isinstance(layer, nn.Linear)
    width = layer.out_features // 3
    if isinstance(layer, FrozenLinear):
        return frozen_linear(x, layer.product(width * start, width * stop))
    bias = None if layer.bias is None else layer.bias[width * start : width * stop]
    return F.linear(x, layer.weight[width * start : width * stop], bias)


class ClipAttention(Attention):
    """The same, called as open_clip's residual blocks call nn.MultiheadAttention: a pair comes back."""

    def forward(  # type: ignore[override]  # the caller, open_clip's block, sets the signature
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        assert key is query, "an image tower attends to itself"
        assert value is query, "an image tower attends to itself"
        assert not need_weights, "attention weights are never formed"
        return super().forward(query, attn_mask), None


class HuggingAttention(Attention):
    """The same, called as Hugging Face's layers call theirs: a pair comes back.

    ``names``: what the library calls its projections, which it keeps apart, in the order q, k, v and, where it is
    inside the attention, ``proj``.
    """

    def __init__(self, qkv: nn.Linear, proj: nn.Module, num_heads: int, names: tuple[str, ...]) -> None:
        super().__init__(qkv, proj, num_heads)
        self.names = names

    def forward(  # type: ignore[override]  # the caller, the library's layer, sets the signature
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        return super().forward(hidden_states, attention_mask), None


def from_timm(source: Any) -> Attention:
    """Take over the modules of a timm ``Attention`` without a gate; head width may differ from D / H."""
    return Attention(
        source.qkv,
        source.proj,
        source.num_heads,
        q_norm=source.q_norm,
        k_norm=source.k_norm,
        norm=source.norm,
        proj_drop=source.proj_drop,
        attn_drop=source.attn_drop.p,
    )


def from_torch(source: nn.MultiheadAttention) -> ClipAttention:
    """Take over the weights of a batch-first nn.MultiheadAttention whose q, k and v share one input."""
    assert source.batch_first, "open_clip builds batch-first towers"
    assert source.bias_k is None, "extra key and value rows are not an image tower's"
    assert not source.add_zero_attn, "extra key and value rows are not an image tower's"
    width = source.embed_dim
    weight = source.in_proj_weight
    qkv = nn.Linear(width, 3 * width, bias=source.in_proj_bias is not None, device="meta")
    qkv.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    if source.in_proj_bias is not None:
        qkv.bias = nn.Parameter(source.in_proj_bias.detach(), requires_grad=source.in_proj_bias.requires_grad)
    proj = nn.Linear(width, width, bias=source.out_proj.bias is not None, device="meta")
    proj.weight, proj.bias = source.out_proj.weight, source.out_proj.bias
    return ClipAttention(qkv, proj, source.num_heads, attn_drop=source.dropout)


def replace_attention(block: nn.Module) -> None:
    """Put our attention in place of every known one inside ``block``; others stay as they are."""
    for name, child in block.named_children():
        if type(child) is loaded("timm.layers", "Attention") and child.gate is None:
            setattr(block, name, from_timm(child))
        elif type(child) is nn.MultiheadAttention:
            setattr(block, name, from_torch(child))
        else:
            replace_attention(child)
