// RowInt8MatMul, RowInt4MatMul: GEMM of rows that are quantized one by one with prepacked weights, fused with what surrounds it.
//
//     RowInt8MatMul(x [..., in], rotation [block, block], weight, scales) -> [..., out]      int8.h
//     RowInt4MatMul(x [..., in], weight, scales, min) -> [..., out]                          int4.h
//     ...MatMulAdd(..., residual [..., out])     epilogue: adds the residual
//     NormRow...MatMul(..., gain [in])           prologue: RMSNormalization of each row
//     SwiGluRow...MatMul(x [..., 2 in], ...)     prologue: SwiGlu of each row
//     SwiGluRow...MatMulAdd(x, ..., residual)
//
// Why so: with the few rows of a speculative round, reading the weights is the cost. So each weight is loaded once for all rows
// of a pass, in memory order, with the next ones prefetched, and the fused neighbours cost no pass over memory and no hand-out to
// threads of their own. A row's result depends on that row only (speculative decoding compares results of calls of different
// sizes bit for bit): its integer sums are exact, and its float sums have a fixed order. `rotation` is a normalized Hadamard
// matrix, applied by hadamard.h.
#include "row_matmul.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "operators.h"
#include "simd.h"
#include "wait.h"

namespace jakiro {
namespace {

constexpr int64_t kPrefetchDistance = 1 << 13;  // bytes
constexpr int64_t kSerial = 1 << 11;            // entries below which one thread quantizes the rows

// The rows of a call in passes of nearly equal size; pass `n` begins at row first(n).
template <typename Format>
struct Passes {
  int64_t rows, count;
  explicit Passes(int64_t rows) : rows(rows), count((rows + Format::kMaxRows - 1) / Format::kMaxRows) {}
  int64_t first(int64_t pass) const { return rows * pass / count; }
  int64_t of(int64_t row) const { return ((row + 1) * count - 1) / rows; }
};

template <typename Format, bool kNonTemporal>
struct Gemm {
  const Format& format;
  const typename Format::Rows& rows;
  const float* residual;
  float* result;

  template <int kRows, int kWide>
  void multiply_pass(int64_t first, int64_t block, const uint8_t* next, int64_t fetch) const {
    Floats y[kRows][kWide];
    format.template multiply<kRows, kWide, kNonTemporal>(rows, first, block, next, fetch, y);
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < kWide; ++b) {
        const int64_t at = (first + r) * format.out() + (block + b) * kLanes;
        if (residual != nullptr) y[r][b] = y[r][b] + load(residual + at);
        store(result + at, y[r][b]);
      }
    }
  }

  // kWide blocks for all rows. A single pass of one block prefetches a short way ahead of itself; otherwise each pass prefetches
  // its share of the blocks that follow.
  template <int kWide>
  void multiply_rows(const Passes<Format>& passes, int64_t block) const {
    const int64_t bytes = format.block_bytes();
    if (kWide == 1 && passes.count == 1) {
      return (this->*kPasses<1>[passes.rows - 1])(0, block, format.block(block) + std::min(bytes, kPrefetchDistance), bytes);
    }
    const uint8_t* next = format.block(block + kWide);
    for (int64_t pass = 0; pass < passes.count; ++pass) {
      const int64_t first = passes.first(pass), lines = kWide * bytes / 64;
      const int64_t from = lines * pass / passes.count * 64, to = lines * (pass + 1) / passes.count * 64;
      (this->*kPasses<kWide>[passes.first(pass + 1) - first - 1])(first, block, next + from, to - from);
    }
  }

  using Pass = void (Gemm::*)(int64_t, int64_t, const uint8_t*, int64_t) const;
  template <int kWide, size_t... kCounts>
  static constexpr std::array<Pass, Format::kMaxRows> passes_of(std::index_sequence<kCounts...>) {
    return {&Gemm::template multiply_pass<static_cast<int>(kCounts) + 1, kWide>...};
  }
  template <int kWide>
  static constexpr std::array<Pass, Format::kMaxRows> kPasses = passes_of<kWide>(std::make_index_sequence<Format::kMaxRows>());
};

// RMSNormalization of a row over all its entries.
void norm(const float* x, const float* gain, int64_t in, float epsilon, float* out) {
  Floats squares = broadcast(0.0f);
  int64_t n = 0;
  for (; n + kLanes <= in; n += kLanes) squares = fmadd(load(x + n), load(x + n), squares);
  float sum = reduce_add(squares);
  for (; n < in; ++n) sum += x[n] * x[n];
  const float by = 1.0f / std::sqrt(sum / static_cast<float>(in) + epsilon);
  for (n = 0; n < in; ++n) out[n] = x[n] * by * gain[n];
}

}  // namespace

template <typename Format, Prologue kPrologue, Epilogue kEpilogue>
void row_matmul(const Call& call) {
  const Tensor x = call.rows(0);
  const int64_t width = x.last(), in = kPrologue == Prologue::kSwiGlu ? width / 2 : width, count = x.count() / width;
  if (kPrologue == Prologue::kSwiGlu && width % 2 != 0) {
    call.refuse("input x has ", width, " entries a row, expected an even number");
  }
  const Format format(call, in);
  const float* residual = kEpilogue == Epilogue::kAdd
                              ? call.entries(Format::kInputs, checked_product(count, format.out())).template as<float>()
                              : nullptr;
  const float* gain = kPrologue == Prologue::kNorm ? call.entries(Format::kInputs, in).template as<float>() : nullptr;
  int64_t dims[kMaxRank];
  std::copy(x.dims, x.dims + x.rank, dims);
  dims[x.rank - 1] = format.out();
  float* result = call.output<float>(0, dims, x.rank);
  if (count == 0) return;

  // buffers of the calling thread, reused by its next call
  thread_local typename Format::Rows of_thread;
  thread_local std::vector<float> scratch_of_thread;
  typename Format::Rows& rows = of_thread;
  rows.resize(count, in);
  if (static_cast<int64_t>(scratch_of_thread.size()) < count * in) scratch_of_thread.resize(count * in);
  const Passes<Format> passes(count);
  auto prepare = [&, scratches = scratch_of_thread.data()](int64_t row) {
    const float* from = x.as<float>() + row * width;
    float* scratch = scratches + row * in;
    if constexpr (kPrologue == Prologue::kNorm) {
      norm(from, gain, in, call.attribute(), scratch);
    } else if constexpr (kPrologue == Prologue::kSwiGlu) {
      swiglu_row(from, in, scratch);
    } else {
      std::memcpy(scratch, from, in * sizeof(float));
    }
    const int64_t pass = passes.of(row), first = passes.first(pass);
    format.quantize(scratch, first, row - first, passes.first(pass + 1) - first, rows);
  };
  const Gemm<Format, true> non_temporal{format, rows, residual, result};
  const Gemm<Format, false> cached{format, rows, residual, result};
  // tasks large enough to be worth a hand-out to a thread, and enough of them to balance the load
  const int64_t wide = count <= Format::kMemoryBoundRows ? 1 : Format::kBlocks, blocks = format.out() / kLanes;
  const int64_t each = std::max<int64_t>(1, std::min(blocks / wide / 16, (1 << 18) / (in * kLanes * wide))) * wide;
  const int64_t parts = count * in <= kSerial ? 1 : std::min<int64_t>(count, 8), tasks = (blocks + each - 1) / each;
  auto multiply = [&](int64_t task, const auto& gemm) {
    const int64_t last = std::min<int64_t>(blocks, (task + 1) * each);
    for (int64_t block = task * each; block < last; block += wide) {
      if (wide == 1 || last - block == 1) {
        gemm.template multiply_rows<1>(passes, block);
      } else {
        gemm.template multiply_rows<Format::kBlocks>(passes, block);
      }
    }
  };
  // One hand-out to the threads serves both steps: each task first helps to quantize rows, then waits until all rows are ready.
  // The parts are claimed, so a waiting thread waits for a part that another thread is working on, never for one nobody took.
  std::atomic<int64_t> claimed{0}, ready{0};
  auto work = [&](size_t task) {
    for (int64_t part; claimed.load(std::memory_order_relaxed) < parts && (part = claimed.fetch_add(1)) < parts;
         ready.fetch_add(1)) {
      for (int64_t row = count * part / parts; row < count * (part + 1) / parts; ++row) prepare(row);
    }
    wait_for(ready, parts);
    call.non_temporal() ? multiply(task, non_temporal) : multiply(task, cached);
  };
  call.parallel(tasks, work);
}

template void row_matmul<Int8, Prologue::kNone, Epilogue::kNone>(const Call& call);
template void row_matmul<Int8, Prologue::kNone, Epilogue::kAdd>(const Call& call);
template void row_matmul<Int8, Prologue::kNorm, Epilogue::kNone>(const Call& call);
template void row_matmul<Int8, Prologue::kSwiGlu, Epilogue::kNone>(const Call& call);
template void row_matmul<Int8, Prologue::kSwiGlu, Epilogue::kAdd>(const Call& call);
template void row_matmul<Int4, Prologue::kNone, Epilogue::kNone>(const Call& call);
template void row_matmul<Int4, Prologue::kNone, Epilogue::kAdd>(const Call& call);
template void row_matmul<Int4, Prologue::kNorm, Epilogue::kNone>(const Call& call);
template void row_matmul<Int4, Prologue::kSwiGlu, Epilogue::kNone>(const Call& call);
template void row_matmul<Int4, Prologue::kSwiGlu, Epilogue::kAdd>(const Call& call);

}  // namespace jakiro
