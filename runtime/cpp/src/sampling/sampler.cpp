#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "errors.h"
#include "sampling/philox.h"
#include "sampling/warping.h"

namespace jakiro::runtime {
namespace {

constexpr double kForbidden = -std::numeric_limits<double>::infinity();

}  // namespace

Sampler::Sampler(Sampling settings, std::vector<int64_t> eos, int64_t vocab_size)
    : settings_(std::move(settings)), eos_(std::move(eos)) {
  settings_.check(vocab_size);
  const Sampling& s = settings_;
  const bool ruled = !s.logit_bias.empty() || s.repetition_penalty != 1 || s.min_new_tokens != 0 || s.hook != nullptr;
  only_best_ = s.temperature == 0 && !ruled;
  needs_logits_ = !only_best_ || s.logprobs;
}

Token Sampler::choose(Token best, const std::vector<double>& logits, const Tokens& prefix, int64_t generated) {
  const Token token = only_best_ ? best : draw(logits, prefix, generated);
  if (token != kNoToken && settings_.logprobs) logprobs_.push_back(token_logprob(logits, token, *settings_.logprobs));
  return token;
}

std::vector<TokenLogprob> Sampler::take_logprobs(size_t count) {
  std::vector<TokenLogprob> taken;
  taken.swap(logprobs_);
  if (taken.size() > count) taken.resize(count);
  return taken;
}

std::vector<double> Sampler::scores(std::vector<double> scores, const Tokens& prefix, int64_t generated) const {
  const Sampling& s = settings_;
  for (const auto& [token, bias] : s.logit_bias) scores[token] += bias;
  if (s.repetition_penalty != 1) {
    for (const Token token : std::set<Token>(prefix.begin(), prefix.end())) {
      double& score = scores[token];
      score = score < 0 ? score * s.repetition_penalty : score / s.repetition_penalty;
    }
  }
  if (generated < s.min_new_tokens) {
    for (const int64_t token : eos_) scores[token] = kForbidden;
  }
  if (s.hook != nullptr) s.hook(prefix, scores);
  return scores;
}

Token Sampler::draw(const std::vector<double>& logits, const Tokens& prefix, int64_t generated) const {
  const std::vector<double> found = scores(logits, prefix, generated);
  const auto top = std::max_element(found.begin(), found.end());
  const bool unordered = std::any_of(found.begin(), found.end(), [](double score) { return std::isnan(score); });
  if (*top == kForbidden && !unordered) return kNoToken;
  if (unordered || !std::isfinite(*top)) {
    throw EngineError("The target's scores are not numbers (NaN or infinite); export the engine with --precision fp32.");
  }
  if (settings_.temperature == 0) return static_cast<Token>(top - found.begin());
  const Warped warped = warp(found, settings_);
  return static_cast<Token>(warped.tokens[invert(warped.weights, uniform(settings_.seed, prefix.size()))]);
}

}  // namespace jakiro::runtime
