"""The scan in torch operations that write over nothing: what transforms of torch and derivatives of any order see.

All directions take a step together; what does not depend on the state is computed for all steps at once. A derivative
in reverse keeps every state: L x C x N values per direction and image, where the backends keep one in 32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.ops.scan.contract import ScanCall

__all__ = ["forward"]


def forward(call: ScanCall) -> Tensor:
    """Return the output of a scan, differentiable and batched as torch's operations are."""
    dtype, walks, device = call.A.dtype, call.traversals, call.u.device
    steps = torch.arange(max(walk.length for walk in walks), device=device)
    # A walk that has ended stays at its first token; what that yields is not written.
    visited = [walk.tokens(torch.where(steps < walk.length, steps, 0)) for walk in walks]

    def along(x: Tensor) -> Tensor:
        parts = x.to(dtype).expand(-1, len(walks), -1, -1).unbind(1)
        return torch.stack([part.index_select(1, tokens) for part, tokens in zip(parts, visited, strict=True)], 1)

    u, delta, b, c = (along(x) for x in (call.u, call.delta, call.B, call.C))
    if call.delta_bias is not None:
        delta = delta + call.delta_bias[:, None]
    if call.delta_softplus:
        delta = F.softplus(delta)
    h = _states(call, torch.exp(delta[..., None] * call.A[:, None]), (delta * u)[..., None] * b[..., None, :])
    y = torch.matmul(h, c[..., None]).squeeze(-1)
    if call.D is not None:
        y = y + call.D[:, None] * u
    y = _written(call, y, steps)
    if call.z is not None:
        gate = F.silu(call.z.to(dtype))
        y = y * (gate if call.merge else gate[:, None])
    return y.to(call.u.dtype)


def _states(call: ScanCall, decay: Tensor, added: Tensor) -> Tensor:
    """Return the states after each step, [B, K, T, C, N], from what each keeps of the last and adds to it."""
    if added.shape[2] == 0:
        return decay * added
    h = nothing = torch.zeros_like(added[:, :, 0])
    states = []
    # Not by their number: the gradient of each part would be as large as the whole.
    for step, (kept, new) in enumerate(zip(decay.unbind(2), added.unbind(2), strict=True)):
        anew = [walk.starts_anew(step) for walk in call.traversals]
        if all(anew):
            h = nothing
        elif any(anew):
            h = torch.where(torch.tensor(anew, device=h.device)[:, None, None], nothing, h)
        h = torch.addcmul(new, kept, h)
        states.append(h)
    return torch.stack(states, 2)


def _written(call: ScanCall, y: Tensor, steps: Tensor) -> Tensor:
    """Return what the steps of each walk yield, [B, K, T, C], at its tokens: [B, L, C] or [B, K, L, C]."""
    nothing = len(steps)
    padded, outputs = F.pad(y, (0, 0, 0, 1)).unbind(1), []  # a row of zeros for tokens that are not visited
    for walk, part in zip(call.traversals, padded, strict=True):
        own = steps[: walk.length]
        source = torch.full((call.tokens,), nothing, device=y.device).index_copy(0, walk.writes().tokens(own), own)
        outputs.append(part.index_select(1, source))
    return sum(outputs[1:], outputs[0]) if call.merge else torch.stack(outputs, 1)
