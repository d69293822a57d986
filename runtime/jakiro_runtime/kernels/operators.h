// The operators of this library but the matmuls; each file says their shapes.
#pragma once

#include "tensor.h"

namespace jakiro {

ort::Status* tree_attention(const Call& call);  // attention.cpp
ort::Status* split_heads(const Call& call);     // split_heads.cpp
ort::Status* swiglu(const Call& call);          // swiglu.cpp
ort::Status* best_token(const Call& call);      // top_k.cpp
ort::Status* candidates(const Call& call);      // top_k.cpp
ort::Status* propose(const Call& call);         // draft_tree.cpp
ort::Status* best_nodes(const Call& call);      // draft_tree.cpp
ort::Status* mix_experts(const Call& call);     // mix_experts.cpp

void swiglu_row(const float* both, int64_t inner, float* out);  // both [2 * inner] -> out [inner]

}  // namespace jakiro
