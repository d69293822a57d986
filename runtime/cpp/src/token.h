// A token's number in the vocabulary.
#pragma once

#include <cstdint>
#include <vector>

namespace jakiro::runtime {

using Token = int32_t;
using Tokens = std::vector<Token>;

constexpr Token kNoToken = -1;  // in place of a token where the rules leave none

}  // namespace jakiro::runtime
