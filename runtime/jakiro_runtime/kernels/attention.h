#pragma once

#include "tensor.h"

namespace jakiro {

ort::Status* tree_attention(const Call& call);

}  // namespace jakiro
