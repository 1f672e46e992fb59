// RMS and layer norm of a row x [D], and the way back through them.
//
//   RMS: x / sqrt(mean(x^2) + eps) * weight + bias      layer: the same of x - mean(x)
#pragma once

#include "common/arena.h"
#include "common/rounding.h"
#include "common/rows.h"

#include <algorithm>
#include <cmath>

namespace VISION_SSM_ISA {

class Norm {
  public:
    int64_t width = 0;  // D

    static int64_t size(int64_t width) { return 2 * (round_up(width, W) + Arena::LINE); }
    Norm(int64_t width, Arena& arena) : width(width) {
        weight_ = arena.take(round_up(width, W));
        bias_ = arena.take(round_up(width, W));
    }
    template <class P>
    void pack(int32_t kind, float eps, const void* weights, const void* biases) {
        kind_ = kind;
        eps_ = eps;
        const P *weight = static_cast<const P*>(weights), *bias = static_cast<const P*>(biases);
        for (int64_t d = 0; d < width; d += W) {
            const int lanes = static_cast<int>(std::min<int64_t>(width - d, W));
            load(weight + d, lanes).store(weight_ + d);
            (bias ? load(bias + d, lanes) : Vec::set(0.f)).store(bias_ + d);
        }
    }

    void forward(const float* x, float* out) const {
        const Moments of = moments(x, out);
        over_row([&](int64_t d, int lanes) {
            const Vec v = (load(x + d, lanes) - of.mean) * of.scale;
            store(fma(v, Vec::load(weight_ + d), Vec::load(bias_ + d)), out + d, lanes);
        });
    }
    // dx = residual + the gradient of x, given that of the normalised row; those of weight and bias are added to. With
    // n = (x - mean) / deviation and g = grad * weight, that of x is (g - mean(g) - n mean(g n)) / deviation; RMS norm
    // takes no means of x or g.
    void backward(const float* x, const float* grad, const float* residual, float* dx, float* dweight,
                  float* dbias) const {
        const Moments of = moments(x, dx);
        Vec sum = Vec::set(0.f), along = sum;
        over_row([&](int64_t d, int lanes) {
            const Vec n = (load(x + d, lanes) - of.mean) * of.scale, given = load(grad + d, lanes);
            const Vec g = given * Vec::load(weight_ + d);
            sum = sum + g;
            along = fma(g, n, along);
            store(fma(given, n, load(dweight + d, lanes)), dweight + d, lanes);
            store(given + load(dbias + d, lanes), dbias + d, lanes);
        });
        const Vec share = Vec::set(1.f / static_cast<float>(width));
        along = sum_everywhere(along) * share;
        sum = kind_ == VSSM_NORM_LAYER ? sum_everywhere(sum) * share : Vec::set(0.f);
        over_row([&](int64_t d, int lanes) {
            const Vec n = (load(x + d, lanes) - of.mean) * of.scale;
            const Vec g = load(grad + d, lanes) * Vec::load(weight_ + d);
            store(fma(g - sum - n * along, of.scale, load(residual + d, lanes)), dx + d, lanes);
        });
    }

  private:
    struct Moments {
        Vec mean, scale;
    };
    // `scratch` [D] is overwritten.
    Moments moments(const float* x, float* scratch) const {
        const Vec share = Vec::set(1.f / static_cast<float>(width));
        Vec mean = Vec::set(0.f), sum = mean, squares = mean;
        if (kind_ == VSSM_NORM_LAYER) {
            over_row([&](int64_t d, int lanes) { sum = sum + load(x + d, lanes); });
            mean = sum_everywhere(sum) * share;
        }
        over_row([&](int64_t d, int lanes) {
            Vec v = load(x + d, lanes) - mean;
            if (lanes < W) {  // the mean taken from the lanes that there are
                v.store(scratch + d, lanes);
                v = load(scratch + d, lanes);
            }
            squares = fma(v, v, squares);
        });
        float variance[W];
        (sum_everywhere(squares) * share).store(variance);
        return {mean, Vec::set(1.f / std::sqrt(variance[0] + eps_))};
    }

    // f(d, lanes) for every vector of a row, whole ones apart so that they need no mask.
    template <class F>
    void over_row(F&& f) const {
        int64_t d = 0;
        for (; d + W <= width; d += W) f(d, W);
        if (d < width) f(d, static_cast<int>(width - d));
    }

    int32_t kind_ = VSSM_NORM_RMS;
    float eps_ = 0;
    float *weight_, *bias_;  // [D], zeros up to whole vectors
};

}  // namespace VISION_SSM_ISA
