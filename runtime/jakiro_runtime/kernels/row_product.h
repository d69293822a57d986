#pragma once

#include <cstdint>
#include <vector>

#include "tensor.h"
#include "tile.h"

namespace jakiro {

// Quantised rows of one call.
struct Rows {
  std::vector<Entry> entries;    // for each pass [in / 4, its rows, 4]
  std::vector<float> scratch;    // [rows, in]
  std::vector<float> scales;     // [rows]
  std::vector<int32_t> offsets;  // [rows], 128 times the sum of a row's entries: what unsigned weights add to every sum

  void resize(int64_t rows, int64_t in) {
    if (static_cast<int64_t>(entries.size()) < rows * in) entries.resize(rows * in), scratch.resize(rows * in);
    if (static_cast<int64_t>(scales.size()) < rows) scales.resize(rows), offsets.resize(rows);
  }
};

// What happens to a row before it is quantised.
enum class Before { kNothing, kNorm, kSwiGlu };

// kAdd: a last input is added to the result.
template <Before kBefore, bool kAdd>
ort::Status* row_product(const Call& call);

}  // namespace jakiro
