"""The Engram gate: how much of the memory's value each hidden stream takes."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import use_triton

GATES = ("sqrt", "sigmoid")


def engram_gate(
    h: Tensor,
    keys: Tensor,
    value: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    gate: str,
    eps: float,
    kept: Tensor | None = None,
) -> Tensor:
    """Return y_g = gate(s_g) * v with s_g = <rms(h_g) * q_g, rms(k_g) * k_g> / sqrt(d), statistics in fp32.

    "sqrt" is sigmoid(sign(s) * sqrt(max(|s|, 1e-6))), as released; "sigmoid" is sigmoid(s), equation 4 of
    arXiv 2601.07372. Differentiable in all tensors but `kept`.

    Args:
        h: hidden streams, [T, G, d].
        keys: [T, G, d].
        value: [T, d], shared by the streams.
        q_weight: [G, d].
        k_weight: [G, d].
        gate: "sqrt" or "sigmoid".
        eps: added to the mean square.
        kept: [T] bool; where it is false, y is zero. None keeps every position.

    Returns:
        [T, G, d] in the dtype of `value`.
    """
    return _dispatch(h, keys, value, q_weight, k_weight, gate, eps, kept, residual=False)


def engram_fuse(
    h: Tensor,
    keys: Tensor,
    value: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    gate: str,
    eps: float,
    kept: Tensor | None = None,
) -> Tensor:
    """Return h + engram_gate(h, ...), in the dtype of `h`: a memory layer that has no convolution."""
    return _dispatch(h, keys, value, q_weight, k_weight, gate, eps, kept, residual=True)


def _dispatch(
    h: Tensor,
    keys: Tensor,
    value: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    gate: str,
    eps: float,
    kept: Tensor | None,
    residual: bool,
) -> Tensor:
    if gate not in GATES:
        raise ValueError(f"gate: {gate!r} is unknown; use sqrt or sigmoid")
    if use_triton(h, keys, value, q_weight, k_weight):
        from kernels.gpu.engram_fuse import EngramGate

        return EngramGate.apply(h, keys, value, q_weight, k_weight, gate == "sqrt", eps, kept, residual)
    y = _gate(h, keys, value, q_weight, k_weight, gate, eps, kept)
    return h + y if residual else y


def _gate(
    h: Tensor,
    keys: Tensor,
    value: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    gate: str,
    eps: float,
    kept: Tensor | None,
) -> Tensor:
    h32, k32 = h.float(), keys.float()
    product = (h32 * k32 * (q_weight.float() * k_weight.float())).sum(-1)
    s = product * _inverse_rms(h32, eps) * _inverse_rms(k32, eps) * h.shape[-1] ** -0.5
    if gate == "sqrt":
        s = s.sign() * s.abs().clamp_min(1e-6).sqrt()
    y = (s.sigmoid()[..., None] * value.float()[..., None, :]).to(value.dtype)
    return y if kept is None else torch.where(kept[:, None, None], y, 0)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1) + eps)
