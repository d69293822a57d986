// The arithmetic of TreeAttention: scores, softmax and weighted values of some query rows of one KV head.
//
// Why so: a query row's sums depend on positions only (see attention.cpp), so rows can be blocked freely. Keys are transposed in
// tiles, so that a score is one chain of multiply-adds over head_dim with 16 keys in the lanes; accumulators fill the registers
// that the CPU has.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace jakiro {

struct Shape {
  int64_t heads, kv_heads, rows, others, capacity, dim;
  float scaling;
};

// Keys and values of one KV head of one sequence: the segment in the cache and the one in the call.
struct KVSegment {
  const float *past_key, *past_value, *new_key, *new_value;
  int64_t past;
};

constexpr int kMaxRows = 32;    // query rows of a task
constexpr int64_t kBlock = 64;  // slots whose keys or values stay in L1 while every row passes over them

// The rows of the call that a query row sees, ascending.
using VisibleRows = std::vector<int32_t>;

// ---- any head_dim ----

inline float dot(const float* a, const float* b, int64_t count) {
  float lanes[8] = {};
  int64_t n = 0;
  for (; n + 8 <= count; n += 8) {
    for (int lane = 0; lane < 8; ++lane) lanes[lane] += a[n + lane] * b[n + lane];
  }
  for (; n < count; ++n) lanes[n % 8] += a[n] * b[n];
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

inline void attend_any_dim(const Shape& shape, const KVSegment& kv, const float* query, const VisibleRows& visible_rows,
                           float* scores, float* out) {
  const int64_t dim = shape.dim, count = kv.past + static_cast<int64_t>(visible_rows.size());
  for (int64_t n = 0; n < kv.past; ++n) scores[n] = dot(query, kv.past_key + n * dim, dim) * shape.scaling;
  for (int64_t n = kv.past; n < count; ++n) {
    scores[n] = dot(query, kv.new_key + visible_rows[n - kv.past] * dim, dim) * shape.scaling;
  }
  std::fill(out, out + dim, 0.0f);
  if (count == 0) return;
  const float largest = *std::max_element(scores, scores + count);
  float total = 0;
  for (int64_t n = 0; n < count; ++n) total += scores[n] = std::exp(scores[n] - largest);
  for (int64_t n = 0; n < count; ++n) {
    const float* value = n < kv.past ? kv.past_value + n * dim : kv.new_value + visible_rows[n - kv.past] * dim;
    for (int64_t d = 0; d < dim; ++d) out[d] += scores[n] * value[d];
  }
  for (int64_t d = 0; d < dim; ++d) out[d] /= total;
}

// ---- head_dim a multiple of 16 ----

// Register blocking: rows and vectors whose accumulators fit the registers together with their operands.
constexpr int kScoreWide = kRegisters == 32 ? 4 : 1, kScoreRows = 4;
constexpr int kValueWide = kRegisters == 32 ? 8 : 2, kValueSums = kRegisters == 32 ? 16 : 4;

// Scores of 16 kWide keys, transposed to columns [dim, kBlock], for kRows queries; one chain of additions over head_dim each.
template <int kRows, int kWide>
inline void score_rows(const float* columns, int64_t dim, const float* const* queries, float* to, int64_t stride) {
  Floats sums[kRows][kWide];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int k = 0; k < kWide; ++k) sums[r][k] = broadcast(0.0f);
  }
  for (int64_t d = 0; d < dim; ++d) {
    Floats keys[kWide];
#pragma GCC unroll 4
    for (int k = 0; k < kWide; ++k) keys[k] = pin(load(columns + d * kBlock + kLanes * k));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Floats query = broadcast(queries[r][d]);
#pragma GCC unroll 4
      for (int k = 0; k < kWide; ++k) sums[r][k] = fmadd(query, keys[k], sums[r][k]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int k = 0; k < kWide; ++k) store(to + r * stride + kLanes * k, sums[r][k]);
  }
}

template <int kWide>
inline void score_all_rows(const float* columns, int64_t dim, int rows, const float* const* queries, float* to, int64_t stride) {
  int r = 0;
  for (; rows - r >= kScoreRows; r += kScoreRows)
    score_rows<kScoreRows, kWide>(columns, dim, queries + r, to + r * stride, stride);
  if (rows - r == 3) score_rows<3, kWide>(columns, dim, queries + r, to + r * stride, stride);
  if (rows - r == 2) score_rows<2, kWide>(columns, dim, queries + r, to + r * stride, stride);
  if (rows - r == 1) score_rows<1, kWide>(columns, dim, queries + r, to + r * stride, stride);
}

// Scores of `count` keys for every row, [rows, stride]; up to 15 floats after the last are overwritten.
inline void score(const float* keys, int64_t count, int64_t dim, int rows, const float* const* queries, float* to,
                  int64_t stride) {
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
      const float* block = columns + v * kLanes;
      float* scores = to + first + v * kLanes;
      switch (std::min<int64_t>(vectors - v, kScoreWide)) {
        case 1:
          score_all_rows<1>(block, dim, rows, queries, scores, stride);
          break;
        case 2:
          score_all_rows<std::min(2, kScoreWide)>(block, dim, rows, queries, scores, stride);
          break;
        case 3:
          score_all_rows<std::min(3, kScoreWide)>(block, dim, rows, queries, scores, stride);
          break;
        default:
          score_all_rows<kScoreWide>(block, dim, rows, queries, scores, stride);
      }
    }
  }
}

// outs[r] += weight * value over `count` positions, 16 kWide entries from `at` on, for kRows rows; values are value_stride floats
// apart. A weight of 0 leaves the bits as they are.
template <int kWide, int kRows>
inline void add_values(const float* value, int64_t value_stride, int64_t count, const float* const* weights, float* const* outs,
                       int64_t at) {
  Floats out[kRows][kWide];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int d = 0; d < kWide; ++d) out[r][d] = load(outs[r] + at + kLanes * d);
  }
  for (int64_t n = 0; n < count; ++n, value += value_stride) {
    Floats values[kWide];
#pragma GCC unroll 8
    for (int d = 0; d < kWide; ++d) values[d] = pin(load(value + kLanes * d));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Floats weight = broadcast(weights[r][n]);
#pragma GCC unroll 8
      for (int d = 0; d < kWide; ++d) out[r][d] = fmadd(weight, values[d], out[r][d]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int d = 0; d < kWide; ++d) store(outs[r] + at + kLanes * d, out[r][d]);
  }
}

// As many rows and vectors at once as there are registers for their accumulators.
template <int kWide>
void add_values(const float* value, int64_t count, int rows, const float* first, int64_t stride, float* const* outs) {
  constexpr int kVectors = std::min(kWide, kValueWide), kRowsAtOnce = std::min(4, kValueSums / kVectors);
  const float* weights[kMaxRows];
  for (int r = 0; r < rows; ++r) weights[r] = first + r * stride;
  for (int64_t at = 0; at < kLanes * kWide; at += kLanes * kVectors) {
    const auto add = [&](auto many, int r) {
      add_values<kVectors, decltype(many)::value>(value + at, kLanes * kWide, count, weights + r, outs + r, at);
    };
    int r = 0;
    for (; rows - r >= kRowsAtOnce; r += kRowsAtOnce) add(std::integral_constant<int, kRowsAtOnce>(), r);
    if constexpr (kRowsAtOnce > 2) {
      for (; rows - r >= 2; r += 2) add(std::integral_constant<int, 2>(), r);
    }
    if (r < rows) add(std::integral_constant<int, 1>(), r);
  }
}

// Turns scores into softmax numerators; returns their sum, in which a position's lane is the position modulo 16.
inline float softmax_numerators(float* scores, int64_t count, float scale) {
  const Floats lowest = broadcast(-3.4e38f), scaling = broadcast(scale);
  Floats largest = lowest;
  for (int64_t n = 0; n < count; n += kLanes) largest = max(largest, load_first(scores + n, count - n, lowest));
  const Floats top = broadcast(reduce_max(largest));
  Floats sum = broadcast(0.0f);
  for (int64_t n = 0; n < count; n += kLanes) {
    const Floats below = (load_first(scores + n, count - n, top) - top) * scaling;
    const Floats each = mask_first(exp(below), count - n);
    sum = sum + each;
    store_first(scores + n, count - n, each);
  }
  return count ? reduce_add(sum) : 1.0f;
}

// Softmax and values of `count` query rows, given their scores of the cache [count, stride] and of all rows of the call [count,
// others].
template <int kWide>
void attend(int count, const Shape& shape, const KVSegment& kv, const VisibleRows* visible_rows, float* scores, int64_t stride,
            float* new_scores, int64_t others, float* const* outs) {
  constexpr int64_t kDim = kLanes * kWide;
  float totals[kMaxRows];
  for (int r = 0; r < count; ++r) {
    float *row = scores + r * stride, *dense = new_scores + r * others;
    const int64_t more = visible_rows[r].size();
    for (int64_t n = 0; n < more; ++n) row[kv.past + n] = dense[visible_rows[r][n]];
    totals[r] = softmax_numerators(row, kv.past + more, shape.scaling);
    std::fill(dense, dense + shape.others, 0.0f);
    for (int64_t n = 0; n < more; ++n) dense[visible_rows[r][n]] = row[kv.past + n];
    std::fill(outs[r], outs[r] + kDim, 0.0f);
  }
  for (int64_t n = 0; n < kv.past; n += kBlock) {
    add_values<kWide>(kv.past_value + n * kDim, std::min(kBlock, kv.past - n), count, scores + n, stride, outs);
  }
  add_values<kWide>(kv.new_value, shape.others, count, new_scores, others, outs);
  for (int r = 0; r < count; ++r) {
    for (int64_t d = 0; d < kDim; ++d) outs[r][d] /= totals[r];
  }
}

}  // namespace jakiro
