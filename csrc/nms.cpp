// Non-maximum suppression: by class and descending score, each box against those kept before it.
#include "common.h"

namespace pliant {
namespace {

struct Candidate {
  int64_t group;
  double score;
  int64_t index;
};

bool better(const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score > b.score : a.index < b.index;
}

template <class A>
struct Box {
  A x1, y1, x2, y2, area;
};

// Boxes with the coordinates in arrays of their own.
template <class A>
struct Boxes {
  A *x1, *y1, *x2, *y2, *area;

  void set(int64_t i, const Box<A>& b) const {
    x1[i] = b.x1, y1[i] = b.y1, x2[i] = b.x2, y2[i] = b.y2, area[i] = b.area;
  }
};

// As many boxes are compared before the first look at whether one of them was enough.
constexpr int64_t STRIP = 64;

// Whether one of the boxes overlaps `b` by more than the threshold. This file is compiled without contraction: a fused
// product would move IoUs that lie exactly on it.
template <class A>
PLIANT_INLINE bool overlapped_impl(const Boxes<A>& kept, int64_t count, const Box<A>& box, A threshold) {
  const A *x1 = kept.x1, *y1 = kept.y1, *x2 = kept.x2, *y2 = kept.y2, *area = kept.area;
  const Box<A> b = box;
  for (int64_t begin = 0; begin < count; begin += STRIP) {
    const int64_t end = std::min(begin + STRIP, count);
    int hits = 0;
#pragma omp simd reduction(+ : hits)
    for (int64_t k = begin; k < end; ++k) {
      const A w = (x2[k] < b.x2 ? x2[k] : b.x2) - (x1[k] > b.x1 ? x1[k] : b.x1);
      const A h = (y2[k] < b.y2 ? y2[k] : b.y2) - (y1[k] > b.y1 ? y1[k] : b.y1);
      const A common = (w > 0 ? w : A(0)) * (h > 0 ? h : A(0));
      // False for NaN.
      hits += common / (area[k] + b.area - common) > threshold ? 1 : 0;
    }
    if (hits) return true;
  }
  return false;
}

PLIANT_CLONES bool overlapped(const Boxes<float>& kept, int64_t count, const Box<float>& b, float threshold) {
  return overlapped_impl(kept, count, b, threshold);
}
PLIANT_CLONES bool overlapped(const Boxes<double>& kept, int64_t count, const Box<double>& b, double threshold) {
  return overlapped_impl(kept, count, b, threshold);
}

// Every box and its score; groups are classes.
std::vector<Candidate> candidates(const Tensor& scores, const std::optional<Tensor>& classes) {
  std::vector<Candidate> all(scores.size(0));
  const int64_t* labels = classes ? static_cast<const int64_t*>(classes->const_data_ptr()) : nullptr;
  dispatch(scores.scalar_type(), [&](auto zero) {
    const auto* from = static_cast<const decltype(zero)*>(scores.const_data_ptr());
    for (int64_t i = 0; i < int64_t(all.size()); ++i) {
      const double score = double(from[i * scores.stride(0)]);
      const int64_t group = labels ? labels[i * classes->stride(0)] : 0;
      all[i] = {group, std::isnan(score) ? -HUGE_VAL : score, i};
    }
  });
  return all;
}

Tensor nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& classes, double iou_threshold) {
  auto list = [&](const Tensor& t) { return t.dim() == 1 && t.size(0) == boxes.size(0); };
  STD_TORCH_CHECK(is_floating(boxes) && boxes.dim() == 2 && boxes.size(1) == 4 && is_floating(scores) && list(scores) &&
                      (!classes || (list(*classes) && classes->scalar_type() == ScalarType::Long)),
                  "nms: arguments that do not fit each other; pliant.ops.nms says which");
  std::vector<Candidate> all = candidates(scores, classes);
  const int64_t n = all.size();
  std::sort(all.begin(), all.end(), [](const Candidate& a, const Candidate& b) {
    return a.group != b.group ? a.group < b.group : better(a, b);
  });
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < n; ++i)
    if (i == 0 || all[i].group != all[i - 1].group) starts.push_back(i);
  const int64_t groups = starts.size();
  starts.push_back(n);

  // How many of each group were kept; they move to its front.
  std::vector<int64_t> counts(groups);
  dispatch(boxes.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    // The largest A that is not above the threshold: no IoU lies between the two.
    A threshold = A(iou_threshold);
    if (double(threshold) > iou_threshold) threshold = std::nextafter(threshold, A(-1));
    const T* const from = static_cast<const T*>(boxes.const_data_ptr());
    const int64_t row = boxes.stride(0), column = boxes.stride(1);
    Buffer<A> memory(5 * n);
    parallel(groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const int64_t first = starts[g], size = starts[g + 1] - first;
        A* const own = memory.get() + 5 * first;
        const Boxes<A> kept{own, own + size, own + 2 * size, own + 3 * size, own + 4 * size};
        int64_t count = 0;
        for (int64_t i = first; i < first + size; ++i) {
          const T* const at = from + all[i].index * row;
          Box<A> b{A(at[0]), A(at[column]), A(at[2 * column]), A(at[3 * column]), 0};
          b.area = (b.x2 - b.x1) * (b.y2 - b.y1);
          if (overlapped(kept, count, b, threshold)) continue;
          kept.set(count, b);
          all[first + count++] = all[i];
        }
        counts[g] = count;
      }
    });
  });

  int64_t total = 0;
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < counts[g]; ++i) all[total++] = all[starts[g] + i];
  if (groups > 1) std::sort(all.begin(), all.begin() + total, better);
  Tensor result = torch::stable::new_empty(boxes, {total}, ScalarType::Long);
  int64_t* const to = static_cast<int64_t*>(result.mutable_data_ptr());
  for (int64_t i = 0; i < total; ++i) to[i] = all[i].index;
  return result;
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("nms", TORCH_BOX(&pliant::nms));
}
