"""What the Triton kernels share: walks in the kernels' form, activations, and what joins segments and directions.

Importing this file loads triton; only :mod:`vision_ssm.ops.scan.triton` does so, when a scan first runs there.

Time is cut into chunks of CHUNK steps that also end where the state starts anew, as ``ops.contract`` lays down; a
segment is a number of consecutive chunks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vision_ssm.ops.scan.contract import CHUNK, chunk_count
from vision_ssm.ops.traversal import Traversal

__all__ = ["fill_walk", "link_segments", "softplus_of", "steps_of", "sum_directions", "walk_words"]

_CHUNK: tl.constexpr = tl.constexpr(CHUNK)
WORDS = 11  # of a walk in the kernels' form
WORDS_: tl.constexpr = tl.constexpr(WORDS)


def walk_words(walk: Traversal) -> list[int]:
    """Return the kernels' form of a walk.

    Length, chunks, steps of a run and chunks of a run (a walk without resets is one run); inner count; start, inner
    and outer stride of the tokens that are read, and the same of those that are written.
    """
    run = walk.inner_count if walk.reset else max(walk.length, 1)
    to = walk.writes()
    return [
        *(walk.length, chunk_count(walk.length, walk.inner_count, walk.reset), run, chunk_count(run)),
        *(walk.inner_count, walk.start, walk.inner_stride, walk.outer_stride),
        *(to.start, to.inner_stride, to.outer_stride),
    ]


@triton.jit(do_not_specialize=["k", "w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7", "w8", "w9", "w10"])
def fill_walk(table, k, w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10):
    """Write the words of walk k. As arguments they need no copy from the host and stay in a captured CUDA graph."""
    row = table + k * WORDS_
    tl.store(row, w0)
    tl.store(row + 1, w1)
    tl.store(row + 2, w2)
    tl.store(row + 3, w3)
    tl.store(row + 4, w4)
    tl.store(row + 5, w5)
    tl.store(row + 6, w6)
    tl.store(row + 7, w7)
    tl.store(row + 8, w8)
    tl.store(row + 9, w9)
    tl.store(row + 10, w10)


@triton.jit
def steps_of(row, chunk):
    """Return (first step, end, whether the state starts anew) of a chunk of the walk at ``row``."""
    run = tl.load(row + 2)
    per_run = tl.load(row + 3)
    number = chunk // per_run
    within = chunk - number * per_run
    begin = number * run + within * _CHUNK
    end = tl.minimum(tl.minimum(begin + _CHUNK, (number + 1) * run), tl.load(row))
    return begin, end, within == 0


@triton.jit
def softplus_of(x):
    """Return (log(1 + e^x), exp(-|x|)), the second for the slope.

    log1p(e) = 2 artanh(e / (2 + e)) for e = exp(-|x|) in [0, 1], as a series in s^2 <= 1/9: the fast logarithm of a
    GPU would lose all digits of small steps, this loses none.
    """
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 / 13.0 + q * (1.0 / 15.0 + q * (1.0 / 17.0))
    series = 1.0 / 7.0 + q * (1.0 / 9.0 + q * (1.0 / 11.0 + q * series))
    series = 1.0 + q * (1.0 / 3.0 + q * (1.0 / 5.0 + q * series))
    return tl.maximum(x, 0.0) + 2.0 * s * series, e


@triton.jit(do_not_specialize=["segments", "segment_chunks"])
def link_segments(
    ends,
    sums,
    a,
    walks,
    directions,
    channels,
    segments,
    segment_chunks,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Turn what each segment ends with if it starts from nothing into what it must start from, in place.

    ``ends`` [B, K, segments, N, C]; ``sums`` [B, K, segments, C] are the sums of delta, so that exp(A sum) is the
    product of the segment's decays. A segment in which the state starts anew lets nothing through. In REVERSE the
    adjoint goes from the last segment to the first by the same rule.
    """
    blocks = tl.cdiv(channels, BLOCK)
    line = (tl.program_id(0) // blocks).to(tl.int64)
    channel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    state = tl.arange(0, PADDED)
    here = channel < channels
    inside = (state < STATES)[:, None] & here[None, :]
    k = line % directions
    rates = tl.load(a + (k * channels + channel)[None, :] * STATES + state[:, None], mask=inside, other=0.0)
    rates *= 1.4426950408889634
    per_run = tl.load(walks + k * WORDS_ + 3)
    h = tl.zeros([PADDED, BLOCK], tl.float32)
    for turn in range(segments):
        segment = segments - 1 - turn if REVERSE else turn
        at = ends + ((line * segments + segment) * STATES + state[:, None]) * channels + channel[None, :]
        end = tl.load(at, mask=inside, other=0.0)
        total = tl.load(sums + (line * segments + segment) * channels + channel, mask=here, other=0.0)
        tl.store(at, h, mask=inside)
        first = segment * segment_chunks
        anew = (first + per_run - 1) // per_run * per_run < first + segment_chunks
        h = end + tl.where(anew, 0.0, tl.exp2(total[None, :] * rates) * h)


@triton.jit(do_not_specialize=["batch_tokens", "tokens", "directions"])
def sum_directions(
    parts, z, y, z_b, z_l, z_c, batch_tokens, tokens, channels, directions, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Write y [B, L, C] = silu(z) times the sum over the first axis of ``parts`` [K, B, L, C], in order."""
    blocks = tl.cdiv(channels, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < batch_tokens)[:, None] & (channel < channels)[None, :]
    at = row[:, None] * channels + channel[None, :]
    total = tl.load(parts + at, mask=inside, other=0.0)
    for k in range(1, directions):
        total += tl.load(parts + k * batch_tokens.to(tl.int64) * channels + at, mask=inside, other=0.0)
    if z is not None:
        place = (row // tokens * z_b + row % tokens * z_l)[:, None] + channel.to(tl.int64)[None, :] * z_c
        gate = tl.load(z + place, mask=inside, other=0.0).to(tl.float32)
        total *= gate / (1.0 + tl.exp(-gate))
    tl.store(y + at, total, mask=inside)
