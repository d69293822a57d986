// Matmul of rows that are quantized one by one with int8 or int4 weights. Operators and shapes: row_matmul.cpp.
#pragma once

#include "call.h"
#include "int4.h"
#include "int8.h"

namespace jakiro {

// What a row goes through before it is quantized.
enum class Prologue { kNone, kNorm, kSwiGlu };
// What happens to the result: kAdd adds a residual, the last input.
enum class Epilogue { kNone, kAdd };

// Format: of the weights, Int8 or Int4.
template <typename Format, Prologue kPrologue, Epilogue kEpilogue>
void row_matmul(const Call& call);

}  // namespace jakiro
