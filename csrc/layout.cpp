// Tells how the C structures lie in memory and what the constants are, for whoever mirrors them.
#include "include/conv.h"
#include "include/gla.h"
#include "include/gla_block.h"
#include "include/library.h"
#include "include/mlp.h"
#include "include/patch_embed.h"
#include "include/scan.h"
#include "include/ssm.h"
#include "include/vim_block.h"

#include <cstddef>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

namespace {

struct Field {
    const char* name;
    size_t offset, size;
};

// Whether a structure can be made of so many values of any type: of no more than it has fields.
struct Anything {
    template <class T>
    operator T() const;
};
template <class S, size_t... I>
auto made_of(std::index_sequence<I...>) -> decltype(S{(static_cast<void>(I), Anything{})...}, std::true_type{});
template <class S>
std::false_type made_of(...);
template <class S, size_t Count>
constexpr bool has_fields = decltype(made_of<S>(std::make_index_sequence<Count>{}))::value &&
                            !decltype(made_of<S>(std::make_index_sequence<Count + 1>{}))::value;

template <class S, size_t Count>
std::string describe(const Field (&fields)[Count]) {
    static_assert(has_fields<S, Count>, "a field is missing below");
    std::string text = std::to_string(sizeof(S));
    for (const Field& f : fields)
        text += std::string(" ") + f.name + "@" + std::to_string(f.offset) + "+" + std::to_string(f.size);
    return text;
}

#define F(field) {#field, offsetof(S, field), sizeof(S::field)}
#define LAYOUT(structure, ...)                    \
    if (std::strcmp(name, #structure) == 0) {     \
        using S = structure;                      \
        static const Field fields[] = {__VA_ARGS__}; \
        static const std::string text = describe<S>(fields); \
        return text.c_str();                      \
    }

}  // namespace

const char* vssm_layout(const char* name) {
    LAYOUT(vssm_tensor, F(data), F(batch_stride), F(direction_stride), F(token_stride), F(dtype))
    LAYOUT(vssm_walk, F(start), F(inner_count), F(inner_stride), F(outer_stride), F(length), F(reset), F(write_start),
           F(write_inner_stride), F(write_outer_stride))
    LAYOUT(vssm_scan, F(batch), F(directions), F(tokens), F(channels), F(states), F(chunks), F(groups), F(threads),
           F(isa), F(softplus), F(merge), F(cover), F(walks), F(a), F(skip), F(bias), F(u), F(delta), F(b), F(c), F(z),
           F(saved), F(y), F(sum), F(grad), F(du), F(ddelta), F(dz), F(db), F(dc), F(db_directions), F(dc_directions),
           F(da), F(dskip), F(dbias))
    LAYOUT(vssm_conv, F(batch), F(directions), F(tokens), F(channels), F(taps), F(groups), F(threads), F(isa),
           F(activation), F(reverse), F(weight), F(bias), F(x), F(y), F(grad), F(dx), F(dparameters))
    LAYOUT(vssm_gla, F(batch), F(directions), F(tokens), F(heads), F(keys), F(values), F(groups), F(threads), F(isa),
           F(merge), F(cover), F(scale), F(walks), F(q), F(k), F(v), F(gates), F(y), F(grad), F(dq), F(dk), F(dv),
           F(dgates))
    LAYOUT(vssm_gla_block, F(batch), F(height), F(width), F(channels), F(heads), F(rank), F(hidden), F(threads), F(isa),
           F(conv_act), F(out_act), F(parameter_dtype), F(product_dtype), F(norm), F(norm2), F(eps), F(eps2), F(g_eps),
           F(l_eps), F(scale), F(norm_weight), F(norm_bias), F(conv), F(qkv_proj), F(gate_down), F(gate_up),
           F(gate_bias), F(g_proj), F(g_bias), F(g_norm), F(l_norm), F(o_proj), F(norm2_weight), F(norm2_bias), F(fc1),
           F(fc2), F(x), F(out))
    LAYOUT(vssm_ssm, F(batch), F(directions), F(tokens), F(channels), F(states), F(rank), F(taps), F(convolutions),
           F(projections), F(threads), F(isa), F(cover), F(parameter_dtype), F(product_dtype), F(walks), F(reverse),
           F(conv_weight), F(conv_bias), F(x_proj), F(dt_proj), F(dt_bias), F(a_log), F(skip), F(x), F(z), F(y), F(sum))
    LAYOUT(vssm_vim_block, F(ssm), F(width), F(norm), F(eps), F(scale), F(norm_weight), F(norm_bias), F(in_proj),
           F(out_proj), F(gamma), F(sums), F(xz), F(saved), F(projected))
    LAYOUT(vssm_vim_blocks, F(batch), F(count), F(chosen), F(threads), F(isa), F(branches), F(stream), F(out), F(rows),
           F(norm), F(eps), F(norm_weight), F(norm_bias), F(normed))
    LAYOUT(vssm_vim_block_gradients, F(branch), F(stream), F(grad), F(dstream), F(normed), F(gated), F(dxz), F(groups),
           F(parameters), F(norm_parameters))
    LAYOUT(vssm_mlp, F(tokens), F(width), F(hidden), F(threads), F(isa), F(norm), F(parameter_dtype), F(product_dtype),
           F(eps), F(norm_weight), F(norm_bias), F(fc1), F(fc1_bias), F(fc2), F(fc2_bias), F(x), F(added), F(out))
    LAYOUT(vssm_patch_embed, F(batch), F(channels), F(height), F(width), F(side), F(stride), F(rows), F(columns),
           F(embed), F(classes), F(batch_stride), F(channel_stride), F(row_stride), F(threads), F(isa), F(dtype),
           F(images), F(weight), F(bias), F(class_rows), F(positions), F(places), F(out))
    return nullptr;
}

#define CONSTANT(constant) {#constant, constant}

int64_t vssm_constant(const char* name) {
    static const struct {
        const char* name;
        int64_t value;
    } constants[] = {
        CONSTANT(VSSM_CHUNK),          CONSTANT(VSSM_MOST_TAPS),  CONSTANT(VSSM_FLOAT32),
        CONSTANT(VSSM_BFLOAT16),       CONSTANT(VSSM_ISA_BEST),   CONSTANT(VSSM_ISA_PORTABLE),
        CONSTANT(VSSM_ISA_AVX2),       CONSTANT(VSSM_ISA_AVX512), CONSTANT(VSSM_ISA_AVX512BF16),
        CONSTANT(VSSM_NORM_RMS),       CONSTANT(VSSM_NORM_LAYER), CONSTANT(VSSM_MISSING_ISA),
        CONSTANT(VSSM_NO_MEMORY),      CONSTANT(VSSM_COVER_EACH), CONSTANT(VSSM_COVER_ONCE),
        CONSTANT(VSSM_COVER_SOME),
    };
    for (const auto& constant : constants)
        if (std::strcmp(name, constant.name) == 0) return constant.value;
    return INT64_MIN;
}
