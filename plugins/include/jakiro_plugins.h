/* What libjakiro_plugins.so offers in addition to the TensorRT plugin: the same kernels behind a C interface, for
 * runtimes that drive CUDA themselves. All pointers are device pointers unless said otherwise. Every call
 * only launches work on `stream`: nothing is allocated, nothing waits, so it may be captured into a CUDA
 * graph. */
#ifndef JAKIRO_PLUGINS_H
#define JAKIRO_PLUGINS_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define JAKIRO_API __attribute__((visibility("default")))
#else
#define JAKIRO_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { JAKIRO_FLOAT = 0, JAKIRO_HALF = 1, JAKIRO_BFLOAT16 = 2 } JakiroType;

/* One mixture of SwiGLU experts (arXiv 2502.06282, section 3). All tensors are dense, row-major and of one
 * type.
 *
 *   primary[r]  = sum over the chosen experts e of w[r, e] * E_e(x[r]); chosen are the top_k largest of
 *                 router_logits[r, :experts], and w is the softmax over those.
 *   contrast[r] = p0 * E_0(x[r]) - p1 * E_1(x[r]) if g0 > g1, else its negative; g = router_logits[r, experts:]
 *                 and p = softmax(g). All zeros when `contrast` is 0.
 *   E_e(v)      = down[e] (silu(gate v) * (up v)); gate is the first `inner` rows of gate_up[e], up the others.
 *
 * Ties among router logits go to the lower index. */
typedef struct {
  JakiroType type;
  int64_t rows, hidden, inner;
  int32_t experts, top_k, contrast;
  const void* x;             /* [rows, hidden] */
  const void* router_logits; /* [rows, experts + 2] */
  const void* gate_up;       /* [experts, 2 * inner, hidden] */
  const void* down;          /* [experts, hidden, inner] */
  void* primary;             /* [rows, hidden] */
  void* contrast_output;     /* [rows, hidden] */
  void* workspace;           /* jakiro_expert_dispatch_workspace() bytes, aligned to 256 */
} JakiroExpertDispatch;

/* Bytes of workspace; does not grow beyond 128 rows. */
JAKIRO_API size_t jakiro_expert_dispatch_workspace(JakiroType type, int64_t rows, int64_t hidden, int64_t inner, int32_t experts);

/* cudaErrorInvalidValue where the sizes make no sense; otherwise what the launch returned. */
JAKIRO_API cudaError_t jakiro_expert_dispatch(const JakiroExpertDispatch* arguments, cudaStream_t stream);

/* Copies the accepted rows of every layer's new keys and values to the tail of its cache, in one launch:
 *
 *   cache[t][b, h, past_length[b] + i] = new_rows[t][b, h, accepted[b, i]]    for i < counts[b]
 *
 * Tensors may differ in element size (a double value cache with half keys): `row_bytes` says each one's
 * head_dim in bytes. Rows that would pass `capacity`, and row numbers outside 0..rows-1, are skipped.
 * past_length is not changed. */
typedef struct {
  int32_t tensors, batch, heads, rows, capacity, most_accepted;
  const void* const* new_rows; /* [tensors] of [batch, heads, rows, row_bytes[t]] */
  void* const* cache;          /* [tensors] of [batch, heads, capacity, row_bytes[t]] */
  const int32_t* row_bytes;    /* [tensors] */
  const int64_t* accepted;     /* [batch, most_accepted] */
  const int64_t* counts;       /* [batch] */
  const int64_t* past_length;  /* [batch] */
} JakiroKvCommit;

JAKIRO_API cudaError_t jakiro_kv_commit(const JakiroKvCommit* arguments, cudaStream_t stream);

/* y = x * w with int4 weights and activations in half precision or bfloat16 (W4A16):
 *
 *   w[k, n] = weights[k, n] * scales[k / group, n], rounded to `type`; sums in float
 *
 * Weights are ONNX's INT4 tensor [in, out]: two outputs a byte, the first in the lower bits, in two's complement. `group` is
 * 32, 64 or 128 and divides `in`; `out` is a multiple of 8. All pointers are aligned to 16 bytes. */
typedef struct {
  JakiroType type; /* JAKIRO_HALF or JAKIRO_BFLOAT16 */
  int64_t rows, in, out;
  int32_t group;
  const void* x;       /* [rows, in] */
  const void* weights; /* [in, out / 2] bytes */
  const void* scales;  /* [in / group, out] */
  void* y;             /* [rows, out] */
} JakiroGroupMatMul;

/* cudaErrorInvalidValue where the sizes make no sense; otherwise what the launch returned. */
JAKIRO_API cudaError_t jakiro_group_matmul(const JakiroGroupMatMul* arguments, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
