// The three matrix products of a convolution, one matrix per convolution group: columns with the weight, the gradient
// of the output with the weight, and the gradient of the output with columns. Each returns false where torch's product
// fails, because threads must not throw. V is the type of the matrices, A that of sums.
#pragma once

#include <vector>

#include "../gemm/choice.h"
#include "../gemm/panels.h"
#include "../gemm/torch.h"
#include "weights.h"

namespace pliant {

// Whether matrices of V can be packed. double is always left to torch.
template <class V>
inline constexpr bool kPacks = !std::is_same_v<V, double>;
struct NoPanels {};
template <class V>
using PanelsOf = std::conditional_t<kPacks<V>, Panels<std::conditional_t<kPacks<V>, V, float>>, NoPanels>;

// How many taps are multiplied at a time. The packed product takes the columns of a few taps as they are gathered,
// which fit into level-2 cache. torch's product packs the whole weight at each call, so it takes all taps at once.
struct ProductPlan {
  bool packed;
  int64_t K, taps, chunks;

  template <class V>
  static ProductPlan of(const ConvShape& s) {
    const bool packed = packed_products<V>() && !s.depthwise;
    const int64_t taps = packed ? pieces(s.K, pieces(s.K * s.Cg, blocking<V>().depth * kCell<V>)) : s.K;
    return {packed, s.K, taps, pieces(s.K, taps)};
  }
  int64_t first(int64_t chunk) const { return chunk * taps; }
  int64_t size(int64_t chunk) const { return std::min(taps, K - first(chunk)); }
};

// The panels of a weight, in `memory` or in their own.
template <class V>
Panels<V> weight_panels(const ConvShape& s, const ProductPlan& plan, V* memory = nullptr) {
  return {s.g, s.K * s.Cg, s.Og, plan.taps * s.Cg, memory};
}
// Values that they hold, by which the kernels know a packed weight again; 0 where it is not packed.
template <class V>
int64_t packed_size(const ConvShape& s, const ProductPlan& plan) {
  if constexpr (kPacks<V>)
    if (plan.packed) return Panels<V>::values(s.g, s.K * s.Cg, s.Og, plan.taps * s.Cg);
  return 0;
}
template <class V>
void fill_panels(Panels<V>& panels, const Weights<V>& weights, const ConvShape& s) {
  const int64_t KCg = s.K * s.Cg;
  panels.fill(1, KCg, blocking<V>().width * KCg,
              [&](int64_t q, int64_t n, int64_t count, V* room) { return weights.filters(q * s.Og + n, count, room); });
}

// result[p][0..O) = bias + columns[p]·weight, added up over the chunks of taps. `packed` are the panels of the weight
// from an earlier call, if there are any.
template <class V>
class OutputProduct {
  using A = typename Work<V>::type;

 public:
  OutputProduct(const Tensor& weight, const std::optional<Tensor>& bias, const Tensor* packed, const ConvShape& s,
                const ProductPlan& plan, int64_t pitch)
      : s_(s), plan_(plan), pitch_(pitch), weights_(weight, s), has_bias_(bias), bias_(s.O) {
    if (bias)
      dispatch(bias->scalar_type(), [&](auto zero) {
        const auto* from = static_cast<const decltype(zero)*>(bias->const_data_ptr());
        for (int64_t o = 0; o < s.O; ++o) bias_[o] = A(from[o * bias->stride(0)]);
      });
    if (!plan.packed) {
      weight_ = weights_.data();
      return;
    }
    if constexpr (kPacks<V>) {
      V* const memory = packed ? const_cast<V*>(static_cast<const V*>(packed->const_data_ptr())) : nullptr;
      panels_ = weight_panels<V>(s, plan, memory);
      if (!packed) fill_panels(panels_, weights_, s);
    }
  }

  // Add the product of one chunk; the first begins with the bias.
  bool operator()(A* result, const V* columns, int64_t count, int64_t chunk) const {
    bool ok = true;
    for (int64_t q = 0; q < s_.g; ++q) {
      const V* const group = columns + q * plan_.taps * s_.Cg;
      A* const to = result + q * s_.Og;
      if (plan_.packed) {
        if constexpr (kPacks<V>)
          panels_.multiply(to, s_.O, chunk == 0 ? bias_.data() + q * s_.Og : to, chunk == 0 ? 0 : s_.O, group, pitch_,
                           count, q, chunk);
      } else if constexpr (std::is_same_v<V, A>) {
        const int64_t KCg = s_.K * s_.Cg;
        ok &= mm<V>({to, count, s_.Og, s_.O, 1}, {group, count, KCg, pitch_, 1},
                    {weight_ + q * s_.Og * KCg, KCg, s_.Og, 1, KCg});
      }
    }
    if (has_bias_ && !plan_.packed)
      for (int64_t p = 0; p < count; ++p)
        for (int64_t o = 0; o < s_.O; ++o) result[p * s_.O + o] += bias_[o];
    return ok;
  }

  // Depthwise convolution has no product, but reads these: weight [K][C], bias [C].
  const V* weight() const { return weight_; }
  const A* bias() const { return bias_.data(); }

 private:
  const ConvShape& s_;
  const ProductPlan& plan_;
  int64_t pitch_;
  Weights<V> weights_;
  const V* weight_ = nullptr;
  bool has_bias_;
  std::vector<A> bias_;
  PanelsOf<V> panels_;
};

// Kernels of depthwise convolution, which has one filter per channel instead of matrices.

// columns[p][k][c] = rows[p][c]·factors[k][c].
#define PLIANT_SPREAD(A) \
  void spread(A* columns, const A* rows, int64_t stride, const A* factors, int64_t K, int64_t C, int64_t count)
PLIANT_DECLARE(PLIANT_SPREAD, (float), (double))
// sums[k][c] += Σ_p rows[p][c]·columns[p][k][c].
#define PLIANT_COLLECT(A) \
  void collect(A* sums, const A* rows, int64_t stride, const A* columns, int64_t K, int64_t C, int64_t count)
PLIANT_DECLARE(PLIANT_COLLECT, (float), (double))

// columns[p] = rows[p]·weight: the gradient of columns from that of the output.
template <class V>
class ColumnsProduct {
  using A = typename Work<V>::type;

 public:
  ColumnsProduct(const Tensor& weight, const ConvShape& s, const ProductPlan& plan, int64_t pitch)
      : s_(s),
        plan_(plan),
        pitch_(pitch),
        weights_(weight, s),
        weight_(weights_.data()),
        zeros_(plan.taps * s.Cg, A(0)) {
    if constexpr (kPacks<V>) {
      const int64_t KCg = s.K * s.Cg;
      for (int64_t chunk = 0; plan.packed && chunk < plan.chunks; ++chunk) {
        Panels<V>& panels = panels_.emplace_back(s.g, s.Og, plan.size(chunk) * s.Cg, s.Og);
        panels.fill(KCg, 1, 0, [&](int64_t q, int64_t n, int64_t, V*) {
          return weight_ + q * s.Og * KCg + plan.first(chunk) * s.Cg + n;
        });
      }
    }
  }

  // Write the columns of one chunk of taps.
  bool operator()(A* columns, const V* rows, int64_t rows_stride, int64_t count, int64_t chunk) const {
    if constexpr (std::is_same_v<V, A>)
      if (s_.depthwise) return spread(columns, rows, rows_stride, weight_, s_.K, s_.C, count), true;
    bool ok = true;
    const int64_t KCg = s_.K * s_.Cg, width = plan_.size(chunk) * s_.Cg;
    for (int64_t q = 0; q < s_.g; ++q) {
      A* const to = columns + q * plan_.taps * s_.Cg;
      const V* const left = rows + q * s_.Og;
      if (plan_.packed) {
        if constexpr (kPacks<V>) panels_[chunk].multiply(to, pitch_, zeros_.data(), 0, left, rows_stride, count, q, 0);
      } else if constexpr (std::is_same_v<V, A>) {
        ok &= mm<V>({to, count, width, pitch_, 1}, {left, count, s_.Og, rows_stride, 1},
                    {weight_ + q * s_.Og * KCg, s_.Og, width, KCg, 1});
      }
    }
    return ok;
  }

 private:
  const ConvShape& s_;
  const ProductPlan& plan_;
  int64_t pitch_;
  Weights<V> weights_;
  const V* weight_;
  std::vector<A> zeros_;
  std::vector<PanelsOf<V>> panels_;
};

// One thread's sum of the weight's gradient, [O][K][C/g] or depthwise [K][C].
template <class V>
class WeightSums {
  using A = typename Work<V>::type;

 public:
  WeightSums(const ConvShape& s, const ProductPlan& plan, int64_t pitch, Arena& arena, int64_t largest)
      : s_(s), plan_(plan), pitch_(pitch) {
    arena.reserve(sums_, s.O * s.K * s.Cg);
    if constexpr (kPacks<V>) arena.reserve(panel_, plan.packed ? room_for_panel<V>(largest) : 0);
  }
  void clear() { std::fill_n(sums_, s_.O * s_.K * s_.Cg, A(0)); }

  // Add the products of one chunk of columns with the gradient of the output, turned [O][positions].
  bool add(const V* turned, int64_t turned_stride, const V* columns, int64_t count, int64_t chunk) const {
    bool ok = true;
    const int64_t KCg = s_.K * s_.Cg, width = plan_.size(chunk) * s_.Cg;
    for (int64_t q = 0; q < s_.g; ++q) {
      A* const sums = sums_ + q * s_.Og * KCg + plan_.first(chunk) * s_.Cg;
      const V *const left = turned + q * s_.Og * turned_stride, *const right = columns + q * plan_.taps * s_.Cg;
      if (plan_.packed) {
        if constexpr (kPacks<V>)
          multiply_add(sums, KCg, left, turned_stride, right, pitch_, s_.Og, count, width, panel_);
      } else if constexpr (std::is_same_v<V, A>) {
        ok &= mm<V>({sums, s_.Og, width, KCg, 1}, {left, s_.Og, count, turned_stride, 1},
                    {right, count, width, pitch_, 1}, true);
      }
    }
    return ok;
  }

  // The same for depthwise convolution, whose gradient comes as rows [positions][C].
  void add_depthwise(const V* rows, int64_t rows_stride, const V* columns, int64_t count) const {
    if constexpr (std::is_same_v<V, A>) collect(sums_, rows, rows_stride, columns, s_.K, s_.C, count);
  }

  const A* sums() const { return sums_; }

 private:
  const ConvShape& s_;
  const ProductPlan& plan_;
  int64_t pitch_;
  A* sums_;
  V* panel_ = nullptr;
};

}  // namespace pliant
