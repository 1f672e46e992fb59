"""The scan in torch operations that write over nothing: what transforms of torch and derivatives of any order see.

All directions take a step together; what does not depend on the state is computed for all steps at once. A derivative
in reverse keeps every state: L x C x N values per direction and image, where the backends keep one in 32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.ops.scan.contract import ScanCall
from vision_ssm.ops.traversal import followed, written

__all__ = ["Recurrence", "forward", "step_by_step"]

Recurrence = Callable[[ScanCall, Tensor, Tensor, Tensor, Tensor], Tensor]
"""From the call, the steps Δ and Δ u [B, K, T, C], and B and C [B, K, T, N], all in the order of the walks, to C · h
[B, K, T, C]. A is the call's, and where a walk starts anew its traversals say."""


def step_by_step(call: ScanCall, delta: Tensor, added: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return C · h, see `Recurrence`."""
    h = _states(call, torch.exp(delta[..., None] * call.A[:, None]), added[..., None] * b[..., None, :])
    return torch.matmul(h, c[..., None]).squeeze(-1)


def forward(call: ScanCall, recurrence: Recurrence = step_by_step) -> Tensor:
    """Return the output of a scan, differentiable and batched as torch's operations are."""
    dtype, walks = call.A.dtype, call.traversals
    u, delta, b, c = (followed(x.to(dtype), walks) for x in (call.u, call.delta, call.B, call.C))
    if call.delta_bias is not None:
        delta = delta + call.delta_bias[:, None]
    if call.delta_softplus:
        delta = F.softplus(delta)
    y = recurrence(call, delta, delta * u, b, c)
    if call.D is not None:
        y = y + call.D[:, None] * u
    y = written(y, walks, call.tokens, merge=call.merge)
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
