"""Self-attention over packed segments: every event (or token) sees those of its own segment and no others.

Two paths give the same result. On CUDA in half precision without dropout it is torch's variable-length flash kernel.
Everywhere else (CPU, float32, attention dropout) segments of similar length are padded together, on the right, and
go through `scaled_dot_product_attention`; only attention itself sees padding, the linear layers around it never do.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

if torch.cuda.is_available():  # it takes seconds to import
    from torch.nn.attention.varlen import varlen_attn

    _KERNEL_OPTIONS = frozenset(inspect.signature(varlen_attn).parameters)  # they changed from torch 2.10 to 2.13

PACKED = "packed"  # transformers dispatches names with sdpa, flash, flex_attention or paged in them elsewhere
_LENGTH_STEP = 8  # on the CPU, segments whose lengths round up to the same multiple are padded together


@dataclass(frozen=True)
class Padding:
    """How t packed rows stand in a right-padded (segments, max_length) layout.

    place: (t,) where each row stands among the segments * max_length places; source: (segments * max_length,) the row
    that stands in each place, and some row where filled: (segments * max_length,) says that none does.
    """

    place: Tensor
    source: Tensor
    filled: Tensor
    segments: int
    max_length: int


def padding(offsets: Tensor, total: int, max_length: int) -> Padding:
    """The layout of b segments of `total` rows; offsets: (b + 1,)."""
    count, lengths = offsets.numel() - 1, offsets.diff()
    segments = torch.repeat_interleave(torch.arange(count, device=offsets.device), lengths, output_size=total)
    place = torch.arange(total, device=offsets.device) - offsets[segments] + segments * max_length
    column = torch.arange(max_length, device=offsets.device)
    source = (offsets[:-1, None] + column).clamp(max=total - 1).flatten()
    return Padding(place, source, (column < lengths[:, None]).flatten(), count, max_length)


class _Gather(torch.autograd.Function):
    """(n, ...) rows -> (m, ...): row source[i] where filled[i], and zeros elsewhere. Every row is read at most once, at
    place, so that its gradient is gathered as well, where index_select's would be added up."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, source: Tensor, filled: Tensor | None, back: Tensor, kept: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(back, kept)
        return _gathered(rows, source, filled)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        back, kept = ctx.saved_tensors
        return _gathered(gradients[0], back, kept), None, None, None, None


def _gathered(rows: Tensor, source: Tensor, filled: Tensor | None) -> Tensor:
    found = rows[source]
    return found if filled is None else torch.where(filled.view(-1, *[1] * (rows.dim() - 1)), found, 0)


def pad_packed(x: Tensor, layout: Padding) -> Tensor:
    """(t, ...) packed rows -> (segments, max_length, ...), zeros on the right."""
    padded: Tensor = _Gather.apply(x, layout.source, layout.filled, layout.place, None)
    return padded.view(layout.segments, layout.max_length, *x.shape[1:])


def unpad(padded: Tensor, layout: Padding) -> Tensor:
    """(segments, max_length, ...) -> (t, ...), the reverse of `pad_packed`."""
    rows: Tensor = _Gather.apply(padded.flatten(0, 1), layout.place, None, layout.source, layout.filled)
    return rows


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_length: int,
    *,
    causal: bool,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product self-attention within segments.

    q: (t, heads, d); k, v: (t, key-value heads, d), heads a multiple of key-value heads; offsets: (b + 1,) int;
    max_length: length of the longest segment; scale: default 1 / sqrt(d); dropout: probability on the attention
    weights. Returns (t, heads, d).
    """
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and dropout == 0.0:
        return _variable_length_attention(q, k, v, offsets, max_length, causal, scale)
    if q.is_cuda:
        return _padded_attention(q, k, v, offsets, max_length, causal, scale, dropout)
    return _attention_by_length(q, k, v, offsets, causal, scale, dropout)


def _padded_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_length: int, causal: bool, scale: float | None, dropout: float
) -> Tensor:
    layout = padding(offsets, q.shape[0], max_length)
    query, key, value = (pad_packed(x, layout).transpose(1, 2) for x in (q, k, v))
    mask = None
    if not causal:  # a causal query never reaches the padding, which stands to its right
        mask = (torch.arange(max_length, device=q.device) < offsets.diff()[:, None])[:, None, None, :]
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        dropout_p=dropout,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return unpad(out.transpose(1, 2), layout)


def _attention_by_length(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, scale: float | None, dropout: float
) -> Tensor:
    lengths = offsets.diff()
    steps = (lengths + _LENGTH_STEP - 1) // _LENGTH_STEP
    groups = steps.unique().tolist()
    if len(groups) == 1:
        return _padded_attention(q, k, v, offsets, int(lengths.max()), causal, scale, dropout)
    rows_of_token = torch.repeat_interleave(steps, lengths)
    tokens, parts = [], []
    for group in groups:
        token, length = (rows_of_token == group).nonzero().squeeze(1), lengths[steps == group]
        inner = F.pad(length.cumsum(0), (1, 0))
        tokens.append(token)
        parts.append(_padded_attention(q[token], k[token], v[token], inner, int(length.max()), causal, scale, dropout))
    order = torch.cat(tokens).argsort()
    return torch.cat(parts).index_select(0, order)


def _variable_length_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_length: int, causal: bool, scale: float | None
) -> Tensor:
    options: dict[str, Any] = {}
    if causal:
        options |= {"window_size": (-1, 0)} if "window_size" in _KERNEL_OPTIONS else {"is_causal": True}
    if scale is not None and "scale" in _KERNEL_OPTIONS:
        options["scale"] = scale
    elif scale is not None:
        q = q * (scale * q.shape[-1] ** 0.5)
    if (
        k.shape[1] != q.shape[1] and "enable_gqa" in _KERNEL_OPTIONS
    ):  # before it had that keyword, it shared heads by itself
        options["enable_gqa"] = True
    cumulative = offsets.to(torch.int32)
    out = varlen_attn(q, k, v, cumulative, cumulative, max_length, max_length, **options)
    return cast(Tensor, out)  # a pair only where the caller asks for one


def _transformers_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (1, heads, t, d), key and value (1, kv heads, t, d), as transformers calls it -> (1, t, heads, d)."""
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError("packed attention needs cu_seq_lens_q and max_length_q, passed to the model's forward")
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    # Under autocast rotary embeddings leave query and key in float32, which would miss the half-precision kernel.
    q, k, v = (x.to(value.dtype).squeeze(0).transpose(0, 1) for x in (query, key, value))
    out = packed_attention(
        q, k, v, cu_seq_lens_q, max_length_q, causal=causal, scale=scaling, dropout=dropout if module.training else 0.0
    )
    return out.unsqueeze(0), None


def register_packed_attention() -> str:
    """Make packed attention known to transformers; returns the name to give as `attn_implementation`.

    A model so configured takes `inputs_embeds` (1, t, d), `position_ids` (1, t), `cu_seq_lens_q` (b + 1,) and
    `max_length_q`, and keeps the b segments apart, decoders and bidirectional encoders alike.
    """
    from transformers import AttentionInterface  # ID methods run without transformers

    # No mask is registered beside it: transformers then makes none, and does not look, waiting for the device, whether
    # positions start anew within the input.
    AttentionInterface.register(PACKED, _transformers_attention)
    return PACKED
