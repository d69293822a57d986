// The operators of this library but the matmuls; each file says their shapes. All throw a Refusal for inputs that do not fit.
#pragma once

#include "call.h"

namespace jakiro {

void tree_attention(const Call& call);  // attention.cpp
void split_heads(const Call& call);     // split_heads.cpp
void swiglu(const Call& call);          // swiglu.cpp
void best_token(const Call& call);      // top_k.cpp
void candidates(const Call& call);      // top_k.cpp
void propose(const Call& call);         // draft_tree.cpp
void best_nodes(const Call& call);      // draft_tree.cpp
void mix_experts(const Call& call);     // mix_experts.cpp

void swiglu_row(const float* both, int64_t inner, float* out);  // both [2 * inner] -> out [inner]

}  // namespace jakiro
