#pragma once

#include "int4.h"
#include "int8.h"
#include "tensor.h"

namespace jakiro {

// What happens to a row before it is quantised.
enum class Before { kNothing, kNorm, kSwiGlu };

// kAdd: a last input is added to the result. Format: of the weights, Int8 or Int4.
template <typename Format, Before kBefore, bool kAdd>
ort::Status* row_product(const Call& call);

}  // namespace jakiro
