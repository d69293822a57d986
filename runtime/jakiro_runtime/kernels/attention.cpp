// TreeAttention: rows that see a cache and some of the rows beside them.
//
//     TreeAttention(query [batch, heads, rows, head_dim], past_key, past_value [batch, kv_heads, capacity, head_dim],
//                   new_key, new_value [batch, kv_heads, others, head_dim], past_length [batch], visible [batch, rows, others])
//         -> [batch, rows, heads * head_dim]
//
// Bit for bit the same wherever a key lies. What a row sees is put in the order of positions: the cache's slots, then the visible
// rows, ascending (a parent precedes its child). A score is computed alike for every key; sums run over positions, each in a lane
// that its position alone decides. A token among the rows of a call and the same token in the cache have one position, so every sum
// has the same terms in the same order, and float32 is enough. Empty slots of the cache are never read: a step costs what is cached.
//
// Bytes: a key or value of the past is read once for every task of its head, of up to 32 query rows; within a task, blocks of slots
// stay in the first cache while the rows pass over them.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "vector.h"

namespace jakiro {
namespace {

struct Shape {
  int64_t heads, kv_heads, rows, others, capacity, dim;
  float scaling;
};

// The keys and values that one key/value head of one sequence has.
struct Part {
  const float *past_key, *past_value, *new_key, *new_value;
  int64_t past;
};

constexpr int kMost = 32;  // query rows of one task
constexpr int64_t kTasks = 8;
constexpr int64_t kBlock = 64;  // slots whose keys or values stay in the first cache while every row passes over them

// What a query row sees among the rows of the call, ascending.
using Seen = std::vector<int32_t>;

// ---- any head_dim-----------------------------------------------------------------------------------------------------------

float dot(const float* a, const float* b, int64_t count) {
  float lanes[8] = {};
  int64_t n = 0;
  for (; n + 8 <= count; n += 8) {
    for (int lane = 0; lane < 8; ++lane) lanes[lane] += a[n + lane] * b[n + lane];
  }
  for (; n < count; ++n) lanes[n % 8] += a[n] * b[n];
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

void attend_plain(const Shape& shape, const Part& part, const float* query, const Seen& seen, float* scores, float* out) {
  const int64_t dim = shape.dim, count = part.past + static_cast<int64_t>(seen.size());
  for (int64_t n = 0; n < part.past; ++n) scores[n] = dot(query, part.past_key + n * dim, dim) * shape.scaling;
  for (int64_t n = part.past; n < count; ++n) {
    scores[n] = dot(query, part.new_key + seen[n - part.past] * dim, dim) * shape.scaling;
  }
  std::fill(out, out + dim, 0.0f);
  if (count == 0) return;
  const float largest = *std::max_element(scores, scores + count);
  float total = 0;
  for (int64_t n = 0; n < count; ++n) total += scores[n] = std::exp(scores[n] - largest);
  for (int64_t n = 0; n < count; ++n) {
    const float* value = n < part.past ? part.past_value + n * dim : part.new_value + seen[n - part.past] * dim;
    for (int64_t d = 0; d < dim; ++d) out[d] += scores[n] * value[d];
  }
  for (int64_t d = 0; d < dim; ++d) out[d] /= total;
}

// ---- head_dim of whole vectors -----------------------------------------------------------------------------------------------

// Rows and vectors whose sums are kept in registers together, beside what they are multiplied by.
constexpr int kScoreWide = kRegisters == 32 ? 4 : 1, kScoreRows = 4;
constexpr int kValueWide = kRegisters == 32 ? 8 : 2, kValueSums = kRegisters == 32 ? 16 : 4;

// Scores of 16 kWide keys, which lie as columns [dim, kBlock], for kRows queries: one chain of additions over the entries each.
template <int kRows, int kWide>
inline void score_rows(const float* columns, int64_t dim, const float* const* queries, float* to, int64_t stride) {
  Floats sums[kRows][kWide];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int k = 0; k < kWide; ++k) sums[r][k] = all(0.0f);
  }
  for (int64_t d = 0; d < dim; ++d) {
    Floats keys[kWide];
#pragma GCC unroll 4
    for (int k = 0; k < kWide; ++k) keys[k] = held(load(columns + d * kBlock + kLanes * k));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Floats query = all(queries[r][d]);
#pragma GCC unroll 4
      for (int k = 0; k < kWide; ++k) sums[r][k] = fused(query, keys[k], sums[r][k]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int k = 0; k < kWide; ++k) store(to + r * stride + kLanes * k, sums[r][k]);
  }
}

template <int kWide>
inline void score_every(const float* columns, int64_t dim, int rows, const float* const* queries, float* to, int64_t stride) {
  int r = 0;
  for (; rows - r >= kScoreRows; r += kScoreRows) score_rows<kScoreRows, kWide>(columns, dim, queries + r, to + r * stride, stride);
  if (rows - r == 3) score_rows<3, kWide>(columns, dim, queries + r, to + r * stride, stride);
  if (rows - r == 2) score_rows<2, kWide>(columns, dim, queries + r, to + r * stride, stride);
  if (rows - r == 1) score_rows<1, kWide>(columns, dim, queries + r, to + r * stride, stride);
}

// Scores of `count` keys for every row, [rows, stride]; up to 15 floats behind the last are overwritten.
void score(const float* keys, int64_t count, int64_t dim, int rows, const float* const* queries, float* to, int64_t stride) {
  alignas(64) float columns[128 * kBlock];
  for (int64_t first = 0; first < count; first += kBlock) {
    for (int64_t n = 0; n < std::min(kBlock, count - first); n += 16) {
      for (int64_t d = 0; d < dim; d += 16) {
        const float* from[16];
        for (int k = 0; k < 16; ++k) from[k] = keys + std::min(first + n + k, count - 1) * dim + d;
        transpose_16<kBlock>(from, columns + d * kBlock + n);
      }
    }
    const int64_t vectors = (std::min(kBlock, count - first) + kLanes - 1) / kLanes;
    for (int64_t v = 0; v < vectors; v += kScoreWide) {
      const float* part = columns + v * kLanes;
      float* scores = to + first + v * kLanes;
      switch (std::min<int64_t>(vectors - v, kScoreWide)) {
        case 1: score_every<1>(part, dim, rows, queries, scores, stride); break;
        case 2: score_every<std::min(2, kScoreWide)>(part, dim, rows, queries, scores, stride); break;
        case 3: score_every<std::min(3, kScoreWide)>(part, dim, rows, queries, scores, stride); break;
        default: score_every<kScoreWide>(part, dim, rows, queries, scores, stride);
      }
    }
  }
}

// Adds weight times value, position by position, to what is in out [16 kWide] for each of kRows rows; the values of two positions are
// `apart` floats apart. A weight of 0 adds nothing.
template <int kWide, int kRows>
inline void add_values(const float* value, int64_t apart, int64_t count, const float* const* weights, float* const* outs, int64_t at) {
  Floats out[kRows][kWide];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int d = 0; d < kWide; ++d) out[r][d] = load(outs[r] + at + kLanes * d);
  }
  for (int64_t n = 0; n < count; ++n, value += apart) {
    Floats each[kWide];
#pragma GCC unroll 8
    for (int d = 0; d < kWide; ++d) each[d] = held(load(value + kLanes * d));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Floats weight = all(weights[r][n]);
#pragma GCC unroll 8
      for (int d = 0; d < kWide; ++d) out[r][d] = fused(weight, each[d], out[r][d]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int d = 0; d < kWide; ++d) store(outs[r] + at + kLanes * d, out[r][d]);
  }
}

// As many rows and vectors of an entry together as their sums have registers.
template <int kWide>
void add_values(const float* value, int64_t count, int rows, const float* first, int64_t stride, float* const* outs) {
  constexpr int kSome = std::min(kWide, kValueWide), kTogether = std::min(4, kValueSums / kSome);
  const float* weights[kMost];
  for (int r = 0; r < rows; ++r) weights[r] = first + r * stride;
  for (int64_t at = 0; at < kLanes * kWide; at += kLanes * kSome) {
    const auto add = [&](auto many, int r) {
      add_values<kSome, decltype(many)::value>(value + at, kLanes * kWide, count, weights + r, outs + r, at);
    };
    int r = 0;
    for (; rows - r >= kTogether; r += kTogether) add(std::integral_constant<int, kTogether>(), r);
    if constexpr (kTogether > 2) {
      for (; rows - r >= 2; r += 2) add(std::integral_constant<int, 2>(), r);
    }
    if (r < rows) add(std::integral_constant<int, 1>(), r);
  }
}

// Scores become softmax numerators; returns their sum, a lane for each position modulo 16.
float numerators(float* scores, int64_t count, float by) {
  const Floats lowest = all(-3.4e38f), scaling = all(by);
  Floats largest = lowest;
  for (int64_t n = 0; n < count; n += kLanes) largest = larger(largest, load_first(scores + n, count - n, lowest));
  const Floats top = all(largest_of(largest));
  Floats sum = all(0.0f);
  for (int64_t n = 0; n < count; n += kLanes) {
    const Floats below = (load_first(scores + n, count - n, top) - top) * scaling;
    const Floats each = keep_first(exponential(below), count - n);
    sum = sum + each;
    store_first(scores + n, count - n, each);
  }
  return count ? sum_of(sum) : 1.0f;
}

template <int kWide>
void attend_wide(int rows, const Shape& shape, const Part& part, const float* const* queries, const Seen* seen, float* scores,
                 int64_t stride, float* const* outs) {
  constexpr int64_t kDim = 16 * kWide;
  score(part.past_key, part.past, kDim, rows, queries, scores, stride);
  thread_local std::vector<float> beside;  // scores of all rows of the call, [rows, others]
  const int64_t others = (shape.others + kBlock - 1) / kBlock * kBlock;
  if (static_cast<int64_t>(beside.size()) < rows * others) beside.resize(rows * others);
  score(part.new_key, shape.others, kDim, rows, queries, beside.data(), others);
  float totals[kMost];
  for (int r = 0; r < rows; ++r) {
    float* row = scores + r * stride;
    const int64_t more = seen[r].size();
    for (int64_t n = 0; n < more; ++n) row[part.past + n] = beside[r * others + seen[r][n]];
    totals[r] = numerators(row, part.past + more, shape.scaling);
    float* dense = beside.data() + r * others;
    std::fill(dense, dense + shape.others, 0.0f);
    for (int64_t n = 0; n < more; ++n) dense[seen[r][n]] = row[part.past + n];
    std::fill(outs[r], outs[r] + kDim, 0.0f);
  }
  for (int64_t n = 0; n < part.past; n += kBlock) {
    add_values<kWide>(part.past_value + n * kDim, std::min(kBlock, part.past - n), rows, scores + n, stride, outs);
  }
  add_values<kWide>(part.new_value, shape.others, rows, beside.data(), others, outs);
  for (int r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < kDim; ++d) outs[r][d] /= totals[r];
  }
}

void attend(int count, const Shape& shape, const Part& part, const float* const* queries, const Seen* seen, float* scores,
            int64_t stride, float* const* outs) {
  switch (shape.dim) {
    case 16: return attend_wide<1>(count, shape, part, queries, seen, scores, stride, outs);
    case 32: return attend_wide<2>(count, shape, part, queries, seen, scores, stride, outs);
    case 64: return attend_wide<4>(count, shape, part, queries, seen, scores, stride, outs);
    case 96: return attend_wide<6>(count, shape, part, queries, seen, scores, stride, outs);
    case 128: return attend_wide<8>(count, shape, part, queries, seen, scores, stride, outs);
  }
  for (int r = 0; r < count; ++r) attend_plain(shape, part, queries[r], seen[r], scores + r * stride, outs[r]);
}

}  // namespace

ort::Status* tree_attention(const Call& call) {
  const Tensor query = call.input(0), past_key = call.input(1), past_value = call.input(2), new_key = call.input(3);
  const Tensor new_value = call.input(4), past_length = call.input(5), visible = call.input(6);
  const int64_t batch = query.dims[0];
  const Shape shape{query.dims[1], past_key.dims[1], query.dims[2], new_key.dims[2], past_key.dims[2], query.dims[3], call.attribute()};
  const int64_t rows = shape.rows, others = shape.others, dim = shape.dim, groups = shape.heads / shape.kv_heads, queries = groups * rows;
  if (past_key.dims[3] != dim || visible.dims[1] != rows || visible.dims[2] != others || shape.heads % shape.kv_heads != 0) {
    return call.fail("TreeAttention: queries, keys and mask do not fit together");
  }
  const int64_t dims[3] = {batch, rows, shape.heads * dim};
  float* result = static_cast<float*>(call.output(0, dims, 3));
  if (batch * rows == 0) return nullptr;

  // rows of a task read keys and values together: as many as leave a few tasks for every thread
  const int64_t parts = std::max<int64_t>(1, kTasks / (batch * shape.kv_heads));
  const int64_t together = std::clamp<int64_t>((queries + parts - 1) / parts, 1, kMost);
  const int64_t chunks = (queries + together - 1) / together;
  auto work = [&](size_t task) {
    const int64_t sequence = task / (shape.kv_heads * chunks), kv = task / chunks % shape.kv_heads, chunk = task % chunks;
    const int64_t head = sequence * shape.kv_heads + kv, slots = head * shape.capacity * dim;
    const Part part{past_key.as<float>() + slots, past_value.as<float>() + slots, new_key.as<float>() + head * others * dim,
                    new_value.as<float>() + head * others * dim, std::min(past_length.as<int64_t>()[sequence], shape.capacity)};
    thread_local std::vector<float> scores;
    thread_local Seen seen[kMost];
    const int64_t stride = part.past + others + kBlock;
    if (static_cast<int64_t>(scores.size()) < kMost * stride) scores.resize(kMost * stride);
    const float* from[kMost];
    float* to[kMost];
    const int count = static_cast<int>(std::min(together, queries - chunk * together));
    for (int n = 0; n < count; ++n) {
      const int64_t row = (chunk * together + n) / groups, which = kv * groups + (chunk * together + n) % groups;
      from[n] = query.as<float>() + ((sequence * shape.heads + which) * rows + row) * dim;
      to[n] = result + ((sequence * rows + row) * shape.heads + which) * dim;
      const bool* sees = visible.as<bool>() + (sequence * rows + row) * others;
      seen[n].clear();
      for (int64_t other = 0; other < others; ++other) {
        if (sees[other]) seen[n].push_back(static_cast<int32_t>(other));
      }
    }
    attend(count, shape, part, from, seen, scores.data(), stride, to);
  };
  call.parallel(batch * shape.kv_heads * chunks, work);
  return nullptr;
}

}  // namespace jakiro
