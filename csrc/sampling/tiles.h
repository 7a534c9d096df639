// Tiles: runs of output positions of one image, small enough for the values of their samples to stay in cache.
#pragma once

#include "../threads.h"

namespace pliant {

// Tiles never cross an image and depend only on its size and the number of threads: a batch gives the same bits as its
// images one by one. With several threads an image has as many tiles as there are threads, or a multiple.
struct Tiles {
  int64_t positions, unit, blocks, per_image, count, largest;

  // Tiles of about as many positions as `bytes` hold at `per_position` bytes each, in multiples of `unit` (the rows
  // that a product takes at a time). `alike`: the same tiles for any number of threads, for sums that would depend on
  // them; there are a few more, so that threads have something to share.
  Tiles(int64_t images, int64_t positions, int64_t unit, int64_t bytes, int64_t per_position, bool alike = false)
      : positions(positions), unit(unit), blocks((positions + unit - 1) / unit) {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t target = std::clamp<int64_t>(bytes / per_position, 18, 384);
    per_image = pieces(positions, target);
    per_image = alike ? std::max(per_image, std::min<int64_t>(positions / 96, 8))
                      : std::min((per_image + threads - 1) / threads * threads,
                                 std::max<int64_t>(positions / 48, per_image));
    count = images * per_image;
    largest = std::min(positions, pieces(blocks, per_image) * unit);
  }
  int64_t image(int64_t tile) const { return tile / per_image; }
  int64_t begin(int64_t tile) const { return blocks * (tile % per_image) / per_image * unit; }
  int64_t size(int64_t tile) const {
    return std::min(positions, blocks * (tile % per_image + 1) / per_image * unit) - begin(tile);
  }
};

}  // namespace pliant
