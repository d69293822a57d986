#pragma once

#include "tensor.h"

namespace jakiro {

ort::Status* split_heads(const Call& call);
ort::Status* swiglu(const Call& call);
ort::Status* best_token(const Call& call);
void swiglu_row(const float* both, int64_t inner, float* out);  // both [2 * inner] -> out [inner]

}  // namespace jakiro
