// MixExperts: the primary and contrast outputs of a draft head's two experts, mixed by the router's two softmaxes.
//
//     MixExperts(router_logits [rows, 4], first, second [rows, hidden]) -> primary, contrast [rows, hidden]
//
// Why a kernel: a few rows, for which a dozen standard operators would cost more to start than to run.
#include <algorithm>
#include <cmath>

#include "operators.h"

namespace jakiro {

void mix_experts(const Call& call) {
  Dim rows{"rows"}, hidden{"hidden"}, four = fixed(4);
  const float* router = call.input(0, rows, four).as<float>();
  const float* first = call.input(1, rows, hidden).as<float>();
  const float* second = call.input(2, rows, hidden).as<float>();
  const int64_t dims[2] = {rows, hidden};
  float *primary = call.output<float>(0, dims, 2), *contrast = call.output<float>(1, dims, 2);
  for (int64_t row = 0; row < rows; ++row) {
    const float* gate = router + row * 4;
    float shares[4];
    for (int n = 0; n < 4; n += 2) {
      const float top = std::max(gate[n], gate[n + 1]), left = std::exp(gate[n] - top), right = std::exp(gate[n + 1] - top);
      shares[n] = left / (left + right);
      shares[n + 1] = right / (left + right);
    }
    const float sign = shares[2] > shares[3] ? 1.0f : -1.0f;
    const float *a = first + row * hidden, *b = second + row * hidden;
    for (int64_t n = 0; n < hidden; ++n) {
      primary[row * hidden + n] = shares[0] * a[n] + shares[1] * b[n];
      contrast[row * hidden + n] = sign * (shares[2] * a[n] - shares[3] * b[n]);
    }
  }
}

}  // namespace jakiro
