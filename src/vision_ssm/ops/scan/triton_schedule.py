"""How a scan is cut into programs for the GPU: the one place where the shape decides."""

from __future__ import annotations

from dataclasses import dataclass

from vision_ssm.ops.scan.contract import CHUNK, ScanCall, chunk_count

__all__ = ["Schedule", "plan"]

WARPS_WANTED = 8  # per multiprocessor: with the 16 independent exponentials of a step, enough to hide its latencies
WARPS_HELD = 8  # of the backward kernel, whose lanes take the 255 registers that there are for each
FEWEST_CHUNKS = 512 // CHUNK  # below this a walk is so short that two more launches cost more than cutting it saves


@dataclass(frozen=True)
class Schedule:
    """The grid of one pass. A program is one warp."""

    padded: int  # states, rounded up to a power of two
    block: int  # channels of a program
    blocks: int  # blocks of channels
    segments: int  # pieces that every walk is cut into
    segment_chunks: int  # chunks of a piece
    groups: int  # backward only: programs that share the blocks of channels of one segment
    programs: int  # backward only: programs launched, each of which takes several tasks in turn

    @property
    def two_pass(self) -> bool:
        """Whether the walks are cut, so that the first states of the segments must be found before."""
        return self.segments > 1


def plan(call: ScanCall, processors: int, *, backward: bool, segment_chunks: int | None = None) -> Schedule:
    """Choose the schedule for ``call`` on a device of ``processors`` multiprocessors.

    A scan is parallel over images, directions and channels for nothing. A batch of 256 images of 197 tokens, or of 64
    of 1,025, fills a GPU with those alone, and each walk is walked once from end to end (single pass): one
    exponential per state and step, nothing else written. One image of 100,000 tokens has no more than a few hundred
    channels x directions, a fraction of a GPU's lanes. Its walks are cut into segments, as many as make
    WARPS_WANTED warps per multiprocessor (two passes): all segments run at once from a state of nothing and keep
    what they end with and how much of a state would have come through; a short scan over the segments gives the
    states that they really start from; a second pass computes the results from those. That doubles the exponentials,
    so it is done only where the single pass would leave more than half of the wanted warps away and the walks
    have at least FEWEST_CHUNKS chunks.

    The backward pass is cut by the same rule, and its lanes share the states of a channel (see ``triton_backward``).
    Its sums over channels are kept once per group of blocks of channels: as few groups as fill the GPU, since each
    takes memory for a gradient of B and of C.

    Args:
        call: the scan.
        processors: multiprocessors (compute units) of the device.
        backward: for the backward pass.
        segment_chunks: chunks per segment, to overrule the choice.
    """
    padded = 1 << (call.states - 1).bit_length()
    if backward:
        # Sixteen of the tile's elements per lane, at most four channels of them.
        block = max(8, min(128, 512 // padded))
        block = min(block, max(8, 1 << (call.channels - 1).bit_length()))
    else:
        block = 32 * max(1, 4 // padded)  # with few states a step is bound by memory: wider loads
    blocks = -(-call.channels // block)
    lines = call.batch * len(call.traversals)
    longest = max(chunk_count(walk.length, walk.inner_count, walk.reset) for walk in call.traversals)
    wanted = WARPS_WANTED * processors
    segments = 1
    if segment_chunks is not None:
        segments = -(-longest // segment_chunks)
    elif 2 * lines * blocks < wanted and longest >= FEWEST_CHUNKS:
        segments = min(longest, -(-wanted // (lines * blocks)))
    segments = max(segments, 1)
    each = max(-(-longest // segments), 1)
    segments = max(-(-longest // each), 1)
    groups = min(blocks, -(-wanted // max(lines * segments, 1)))
    return Schedule(
        padded, block, blocks, segments, each, groups, min(lines * segments * groups, WARPS_HELD * processors)
    )
