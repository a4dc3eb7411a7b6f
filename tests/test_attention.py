"""Packed attention against a loop over segments with the textbook formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.attention import packed_attention, pad_packed, padding, unpad


def textbook(q, k, v, offsets, causal, scale):
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    out = torch.empty_like(q)
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        scores = torch.einsum("ihd,jhd->hij", q[start:end], k[start:end]) * scale
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        out[start:end] = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[start:end])
    return out


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    causal=st.booleans(),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    scale=st.sampled_from([None, 0.7]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_textbook_formula_with_gradients(lengths, causal, heads, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    total, d = sum(lengths), 8
    q, k, v = (
        torch.randn(total, h, d, generator=generator, requires_grad=True) for h in (heads[0], heads[1], heads[1])
    )
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    upstream = torch.randn(total, heads[0], d, generator=generator)
    got = packed_attention(q, k, v, offsets, max(lengths), causal=causal, scale=scale)
    want = textbook(q, k, v, offsets, causal, d**-0.5 if scale is None else scale)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for a, b in zip(
        torch.autograd.grad(got, (q, k, v), upstream), torch.autograd.grad(want, (q, k, v), upstream), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_padding_and_back():
    x = torch.arange(6.0)[:, None].requires_grad_()
    layout = padding(torch.tensor([0, 1, 4, 6, 6]), 6, 3)
    padded = pad_packed(x, layout)
    assert padded.squeeze(-1).tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 0], [0, 0, 0]]
    (back,) = torch.autograd.grad((padded.squeeze(-1) * torch.arange(12.0).view(4, 3)).sum(), x, retain_graph=True)
    assert back.squeeze(-1).tolist() == [0, 3, 4, 5, 6, 7]
    unpadded = unpad(padded, layout)
    assert torch.equal(unpadded, x)
    (back,) = torch.autograd.grad((unpadded.squeeze(-1) * torch.arange(6.0)).sum(), padded)
    assert back.squeeze(-1).tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 0], [0, 0, 0]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cuda_kernel_equals_the_padded_path(causal, kv_heads):
    torch.manual_seed(0)
    lengths = torch.tensor([5, 130, 1, 64])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).cuda()
    q, k, v = (torch.randn(200, h, 64, device="cuda") for h in (4, kv_heads, kv_heads))
    exact = packed_attention(q, k, v, offsets, 130, causal=causal)
    fast = packed_attention(*(x.bfloat16() for x in (q, k, v)), offsets, 130, causal=causal)
    torch.testing.assert_close(fast.float(), exact, atol=2e-2, rtol=2e-2)
