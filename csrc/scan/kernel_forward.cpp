// Forward scan, by the equations of include/scan.h. Time is cut into tiles of VSSM_CHUNK steps and every tile goes
// through all blocks of channels before the next tile starts, so that the rows of a tile are used while they are in
// cache. One lane is one channel and the states of W channels stay in registers along a tile: no horizontal sums, no
// transposed copies.
#include "common/threads.h"
#include "scan/advance.h"
#include "scan/channels.h"

#include <vector>

namespace VISION_SSM_ISA {

namespace {

template <class E>
void prepare(const vssm_scan& s, Slice& slice, const int64_t* tokens, int count, const Rows<E>& u,
             const Rows<E>& delta, int64_t k, int64_t channel, int lanes) {
    const int64_t parameter = k * s.channels + channel;
    const Vec skip = s.skip ? load(s.skip + parameter, lanes) : Vec::set(0.f);
    const Vec bias = s.bias ? load(s.bias + parameter, lanes) : Vec::set(0.f);
    for (int t = 0; t < count; ++t) {
        const Vec x = load(u.row(tokens[t]) + channel, lanes);
        Vec d = load(delta.row(tokens[t]) + channel, lanes) + bias;
        if (s.softplus) d = softplus(d);
        d.store(slice.delta + t * W);
        (d * x).store(slice.drive + t * W);
        (skip * x).store(slice.y + t * W);
    }
}

// One direction of one image for one range of channels.
template <class E>
class DirectionScan {
  public:
    DirectionScan(const vssm_scan& s, int64_t image, int64_t k, const ChannelRange& range, float* memory)
        : s_(s),
          image_(image),
          k_(k),
          range_(range),
          u_(s.u, image, k),
          delta_(s.delta, image, k),
          b_rows_(s.b, image, k),
          c_rows_(s.c, image, k),
          epilogue_{Rows<E>(s.y, image, k), Rows<E>(s.z, image, k), Rows<float>(s.sum, image, k),
                s.merge && (s.cover == VSSM_COVER_SOME || (s.cover == VSSM_COVER_EACH && k + 1 < s.directions)),
                s.merge && adds_to_shared(s, k), s.z.data != nullptr},
          h_(memory),
          rate_(h_ + range.blocks * s.states * W),
          b_(rate_ + range.blocks * s.states * W),
          c_(b_ + T * s.states) {}

    static int64_t memory(const vssm_scan& s, const ChannelRange& range) {
        return 2 * (range.blocks * W + T) * s.states;
    }

    void run() {
        const vssm_walk& walk = s_.walks[k_];
        const Tiles tiles(walk);
        const int64_t all = tiles.count();
        start();
        if (all > 0) next_.set(walk, 0, tiles.steps(0));
        for (int64_t tile = 0; tile < all; ++tile) {
            const int count = tiles.steps(tile), next_count = tile + 1 < all ? tiles.steps(tile + 1) : 0;
            visited_ = next_;
            if (next_count) next_.set(walk, tiles.first(tile + 1), next_count);
            ahead_.start(next_, next_count, range_.blocks);
            copy_states(b_rows_, visited_.reads, count, s_.states, b_);
            copy_states(c_rows_, visited_.reads, count, s_.states, c_);
            if (tiles.starts_anew(tile)) std::fill_n(h_, range_.blocks * s_.states * W, 0.f);
            for (int64_t block = 0; block < range_.blocks; ++block) {
                if (s_.saved) save(tile, block);
                for (int at = 0; at < count; at += S) slice(block, at, count);
            }
        }
    }

  private:
    void start() {
        const int64_t first = range_.channel(0);
        ahead_.add(u_, first, false);
        ahead_.add(delta_, first, false);
        if (epilogue_.reaches_sum()) ahead_.add(epilogue_.sum, first, true);
        if (epilogue_.reaches_output()) ahead_.add(epilogue_.y, first, true);
        if (!epilogue_.to_sum && epilogue_.gate) ahead_.add(epilogue_.z, first, true);
        copy_rates(s_, k_, range_, rate_);
    }

    void save(int64_t chunk, int64_t block) {
        const int64_t channel = range_.channel(block);
        float* out = s_.saved + ((image_ * s_.directions + k_) * s_.chunks + chunk) * s_.states * s_.channels + channel;
        for (int64_t n = 0; n < s_.states; ++n)
            store(Vec::load(h_ + (block * s_.states + n) * W), out + n * s_.channels, ChannelRange::lanes(s_, channel));
    }

    void slice(int64_t block, int at, int tile_count) {
        const int64_t channel = range_.channel(block), N = s_.states;
        const int lanes = ChannelRange::lanes(s_, channel), count = std::min(tile_count - at, S);
        const int64_t *reads = visited_.reads + at, *writes = visited_.writes + at;
        Slice slice;
        prepare(s_, slice, reads, count, u_, delta_, k_, channel, lanes);
        LinePrefetch lines;
        if (epilogue_.reaches_sum()) lines.add(epilogue_.sum, channel, writes, count);
        if (epilogue_.reaches_output()) lines.add(epilogue_.y, channel, writes, count);
        if (!epilogue_.to_sum && epilogue_.gate) lines.add(epilogue_.z, channel, writes, count);
        const bool last = at + S >= tile_count;  // then the next slice is the next block's first
        const int64_t next = last ? channel + W : channel;
        const int64_t* next_reads = last ? visited_.reads : reads + S;
        const int next_count = std::min(last ? tile_count : tile_count - at - S, S);
        lines.add(u_, next, next_reads, next_count);
        lines.add(delta_, next, next_reads, next_count);
        for_state_groups<STATE_GROUP>(N, [&](int64_t n, auto size) {
            const int64_t state = (block * N + n) * W;
            advance<size>(slice, count, rate_ + state, b_ + at * N + n, c_ + at * N + n, N, h_ + state,
                          n == 0 ? &ahead_ : nullptr, lines);
        });
        apply_epilogue(slice, writes, writes, count, channel, lanes, epilogue_);
    }

    const vssm_scan& s_;
    const int64_t image_, k_;
    const ChannelRange& range_;
    const Rows<E> u_, delta_, b_rows_, c_rows_;
    const Epilogue<E> epilogue_;
    float *h_, *rate_;  // [blocks][N][W]
    float *b_, *c_;     // [T][N]
    TileTokens visited_ = {}, next_ = {};
    TilePrefetch ahead_;
};

// Where walks leave tokens out, the gate and the narrowing wait until all directions are summed.
template <class E>
void finish_sum(const vssm_scan& s, int64_t image) {
    const Rows<E> y(s.y, image, 0), z(s.z, image, 0);
    const Rows<float> sum(s.sum, image, 0);
    for (int64_t token = 0; token < s.tokens; ++token)
        for (int64_t channel = 0; channel < s.channels; channel += W) {
            const int lanes = ChannelRange::lanes(s, channel);
            Vec v = load(sum.row(token) + channel, lanes);
            if (s.z.data) {
                const Vec gate = load(z.row(token) + channel, lanes);
                v = v * gate * sigmoid(gate);
            }
            store(v, y.row(token) + channel, lanes);
        }
}

template <class E>
void forward(const vssm_scan& s) {
    const int64_t tasks = s.batch * s.groups;
#pragma omp parallel num_threads(s.threads)
    {
        const FlushDenormals flush;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; ++task) {
            const ChannelRange range(s, task % s.groups);
            std::vector<float> memory(static_cast<size_t>(DirectionScan<E>::memory(s, range)));
            for (int64_t k = 0; k < s.directions; ++k)
                DirectionScan<E>(s, task / s.groups, k, range, memory.data()).run();
        }
        if (s.merge && s.cover == VSSM_COVER_SOME) {
#pragma omp for schedule(static)
            for (int64_t image = 0; image < s.batch; ++image) finish_sum<E>(s, image);
        }
    }
}

}  // namespace

int scan_forward(const vssm_scan& s) {
    if (s.u.dtype == VSSM_BFLOAT16)
        forward<bfloat16>(s);
    else
        forward<float>(s);
    return VSSM_DONE;
}

}  // namespace VISION_SSM_ISA
