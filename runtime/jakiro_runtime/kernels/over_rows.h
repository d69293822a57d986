// Elementwise work over the rows of a tensor, shared among the session's threads.
#pragma once

#include <algorithm>

#include "call.h"

namespace jakiro {

constexpr int64_t kSerialEntries = 1 << 16;  // entries below which a hand-out to threads costs more than it saves

// Runs work(first, last) over all rows, on several threads where there are many entries.
template <typename Work>
void over_rows(const Call& call, int64_t rows, int64_t width, Work work) {
  const int64_t parts = std::clamp<int64_t>(rows * width / kSerialEntries, 1, 16), rows_each = (rows + parts - 1) / parts;
  auto part_rows = [&](size_t part) { work(part * rows_each, std::min<int64_t>(rows, (part + 1) * rows_each)); };
  call.parallel(parts, part_rows);
}

}  // namespace jakiro
