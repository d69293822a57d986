#include "sampling/parameters.h"

#include <cmath>
#include <sstream>

#include "errors.h"

namespace jakiro::runtime {
namespace {

constexpr double kLargestBias = 1e9;

template <typename Number>
void expect(bool fine, const char* name, Number value, const char* wanted) {
  if (fine) return;
  std::ostringstream sentence;
  sentence << name << " is " << value << "; expected " << wanted << ".";
  throw UsageError(sentence.str());
}

}  // namespace

void Sampling::check(int64_t vocab_size) const {
  expect(temperature >= 0 && std::isfinite(temperature), "temperature", temperature, "a number of 0 or more");
  expect(top_k >= 0, "top_k", top_k, "0 (all) or more");
  expect(top_p > 0 && top_p <= 1, "top_p", top_p, "above 0 and at most 1");
  expect(min_p >= 0 && min_p <= 1, "min_p", min_p, "between 0 and 1");
  expect(repetition_penalty >= 1e-3 && repetition_penalty <= 1e3, "repetition_penalty", repetition_penalty,
         "between 0.001 and 1000");
  expect(min_new_tokens >= 0, "min_new_tokens", min_new_tokens, "0 or more");
  if (logprobs) expect(*logprobs >= 0, "top_logprobs", *logprobs, "0 or more");
  for (const auto& [token, bias] : logit_bias) {
    if (token < 0 || token >= vocab_size) {
      throw UsageError("logit_bias names a token outside 0.." + std::to_string(vocab_size - 1) + ", the engine's vocabulary.");
    }
    const std::string name = "logit_bias of token " + std::to_string(token);
    expect(std::abs(bias) <= kLargestBias, name.c_str(), bias, "a number between -1e9 (forbids it) and 1e9 (forces it)");
  }
}

}  // namespace jakiro::runtime
