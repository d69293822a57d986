#include "decoding/sequence.h"

#include <algorithm>

#include "errors.h"

namespace jakiro::runtime {
namespace {

Tokens checked_prompt(const Model& model, Tokens ids) {
  if (ids.empty()) throw UsageError("The prompt is empty; give at least one token.");
  if (std::any_of(ids.begin(), ids.end(), [&](Token token) { return token < 0 || token >= model.vocab_size; })) {
    throw UsageError("The prompt holds a token outside 0.." + std::to_string(model.vocab_size - 1) +
                     ", the engine's vocabulary.");
  }
  if (static_cast<int64_t>(ids.size()) >= model.max_context) {
    throw ContextError("The prompt has " + std::to_string(ids.size()) + " tokens, but this engine's context is " +
                       std::to_string(model.max_context) + ", answer included.");
  }
  return ids;
}

}  // namespace

TokenSequence::TokenSequence(const Bundle& bundle, Tokens prompt, const GenerateOptions& options)
    : model_(bundle.manifest.model),
      tokens_(checked_prompt(model_, std::move(prompt))),
      sampler_(options.sampling, model_.eos_token_ids, model_.vocab_size),
      limit_(options.max_new_tokens),
      room_(model_.max_context - static_cast<int64_t>(tokens_.size())) {
  if (limit_ < 1) {
    throw UsageError("max_new_tokens is " + std::to_string(limit_) + "; at least 1 is expected.");
  }
  stats.prompt_tokens = static_cast<int64_t>(tokens_.size());
}

Token TokenSequence::next_token(Token best, const std::vector<double>& logits, const Tokens& path) {
  Tokens prefix = tokens_;
  prefix.insert(prefix.end(), path.begin(), path.end());
  return sampler_.choose(best, logits, prefix, stats.new_tokens + static_cast<int64_t>(path.size()));
}

GenerationChunk TokenSequence::take(const Gain& gain) {
  GenerationChunk chunk;
  for (const Token token : gain.tokens) {
    if (token == kNoToken) {
      chunk.finish_reason = JAKIRO_FINISH_CONSTRAINT;
      break;
    }
    chunk.tokens.push_back(token);
    ++stats.new_tokens;
    chunk.finish_reason = end_after(token);
    if (chunk.finish_reason != JAKIRO_FINISH_NONE) break;
  }
  tokens_.insert(tokens_.end(), chunk.tokens.begin(), chunk.tokens.end());
  if (gain.counts) {
    const auto in_tree = static_cast<int64_t>(gain.tokens.size()) - 1, taken = static_cast<int64_t>(chunk.tokens.size());
    stats.count_round(std::min(in_tree, taken), *gain.counts);
  }
  chunk.logprobs = sampler_.take_logprobs(chunk.tokens.size());
  return chunk;
}

jakiro_finish_reason TokenSequence::end_after(Token token) const {
  const auto& eos = model_.eos_token_ids;
  if (std::find(eos.begin(), eos.end(), token) != eos.end()) return JAKIRO_FINISH_EOS;
  if (stats.new_tokens == limit_) return JAKIRO_FINISH_LENGTH;
  if (stats.new_tokens == room_) return JAKIRO_FINISH_CONTEXT;
  return JAKIRO_FINISH_NONE;
}

}  // namespace jakiro::runtime
