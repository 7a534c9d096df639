// Non-maximum suppression: within each class, in the order of descending scores, a box is kept unless it overlaps one
// that was kept before. This file is compiled without contraction (-ffp-contract=off in CMakeLists.txt): a fused
// multiply-add would change overlaps that lie exactly on the threshold. tests/test_contraction.py checks that.
#include <cmath>
#include <vector>

#include "abi.h"
#include "isa.h"
#include "memory.h"
#include "threads.h"

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

// Boxes, an array per coordinate.
template <class A>
struct Boxes {
  A *x1, *y1, *x2, *y2, *area;

  void set(int64_t i, const Box<A>& b) const {
    x1[i] = b.x1, y1[i] = b.y1, x2[i] = b.x2, y2[i] = b.y2, area[i] = b.area;
  }
};

// Boxes that are compared between two looks at whether one of them overlapped.
constexpr int64_t kStrip = 64;

// Whether one of the first `count` boxes overlaps `box` by more than the threshold.
template <class A>
PLIANT_INLINE bool overlapped_by(const Boxes<A>& kept, int64_t count, const Box<A>& box, A threshold) {
  const A *x1 = kept.x1, *y1 = kept.y1, *x2 = kept.x2, *y2 = kept.y2, *area = kept.area;
  const Box<A> b = box;
  for (int64_t begin = 0; begin < count; begin += kStrip) {
    const int64_t end = std::min(begin + kStrip, count);
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

#define PLIANT_OVERLAPPED(A) bool overlapped(const Boxes<A>& kept, int64_t count, const Box<A>& box, A threshold)
PLIANT_KERNEL(PLIANT_OVERLAPPED, { return overlapped_by(kept, count, box, threshold); }, (float), (double))

// All boxes as candidates, a group per class.
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

// The index of each group's first candidate, then the number of candidates, which are sorted by group.
std::vector<int64_t> group_starts(const std::vector<Candidate>& all) {
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < int64_t(all.size()); ++i)
    if (i == 0 || all[i].group != all[i - 1].group) starts.push_back(i);
  starts.push_back(all.size());
  return starts;
}

// Move the candidates that are kept to the front of `size` candidates of one group, sorted by score, and return how
// many. `own` has room for five numbers each.
template <class T, class A>
int64_t keep(Candidate* group, int64_t size, const T* boxes, int64_t row, int64_t column, A threshold, A* own) {
  const Boxes<A> kept{own, own + size, own + 2 * size, own + 3 * size, own + 4 * size};
  int64_t count = 0;
  for (int64_t i = 0; i < size; ++i) {
    const T* const at = boxes + group[i].index * row;
    Box<A> b{A(at[0]), A(at[column]), A(at[2 * column]), A(at[3 * column]), 0};
    b.area = (b.x2 - b.x1) * (b.y2 - b.y1);
    if (overlapped(kept, count, b, threshold)) continue;
    kept.set(count, b);
    group[count++] = group[i];
  }
  return count;
}

// The same for every group; return the counts.
std::vector<int64_t> keep_all(std::vector<Candidate>& all, const std::vector<int64_t>& starts, const Tensor& boxes,
                              double iou_threshold) {
  const int64_t groups = starts.size() - 1;
  std::vector<int64_t> counts(groups);
  dispatch(boxes.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    // The largest A that is not above the threshold: no IoU lies between the two.
    A threshold = A(iou_threshold);
    if (double(threshold) > iou_threshold) threshold = std::nextafter(threshold, A(-1));
    const T* const from = static_cast<const T*>(boxes.const_data_ptr());
    const int64_t row = boxes.stride(0), column = boxes.stride(1);
    const Buffer<A> memory(5 * all.size());
    parallel(groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g)
        counts[g] = keep(&all[starts[g]], starts[g + 1] - starts[g], from, row, column, threshold,
                         memory.get() + 5 * starts[g]);
    });
  });
  return counts;
}

Tensor nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& classes, double iou_threshold) {
  auto list = [&](const Tensor& t) { return t.dim() == 1 && t.size(0) == boxes.size(0); };
  require_fit(is_floating(boxes) && boxes.dim() == 2 && boxes.size(1) == 4, "nms", "boxes");
  require_fit(is_floating(scores) && list(scores), "nms", "scores");
  require_fit(!classes || (list(*classes) && classes->scalar_type() == ScalarType::Long), "nms", "classes");
  require_fit(iou_threshold >= 0 && iou_threshold <= 1, "nms", "iou_threshold");
  std::vector<Candidate> all = candidates(scores, classes);
  std::sort(all.begin(), all.end(), [](const Candidate& a, const Candidate& b) {
    return a.group != b.group ? a.group < b.group : better(a, b);
  });
  const std::vector<int64_t> starts = group_starts(all), counts = keep_all(all, starts, boxes, iou_threshold);

  int64_t total = 0;
  for (size_t g = 0; g < counts.size(); ++g)
    for (int64_t i = 0; i < counts[g]; ++i) all[total++] = all[starts[g] + i];
  if (counts.size() > 1) std::sort(all.begin(), all.begin() + total, better);
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
