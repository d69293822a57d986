#pragma once

#include "tensor.h"

namespace jakiro {

ort::Status* split_heads(const Call& call);
ort::Status* swiglu(const Call& call);

}  // namespace jakiro
