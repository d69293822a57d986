#pragma once

#include "tensor.h"

namespace jakiro {

ort::Status* candidates(const Call& call);
ort::Status* propose(const Call& call);
ort::Status* best_nodes(const Call& call);
ort::Status* mix_experts(const Call& call);

}  // namespace jakiro
