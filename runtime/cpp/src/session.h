// Sessions: one conversation each, whose processed tokens the next prompt re-uses where it begins the same way.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "bundle.h"
#include "decoding/decoder.h"
#include "decoding/sequence.h"

namespace jakiro::runtime {

// Gets each chunk of an answer; false stops it.
using ChunkCallback = std::function<bool(const GenerationChunk&)>;

// One conversation: its caches, and the tokens they stand for. For one thread at a time, but for `cancel`.
class Session {
 public:
  Session(std::shared_ptr<const Bundle> bundle, const DecoderOptions& options);

  // Answer a prompt, a chunk a round. What the prompt shares with the conversation so far is not processed again. Why it ended.
  jakiro_finish_reason generate(Tokens prompt, const GenerateOptions& options, const ChunkCallback& callback);

  // End the answer that is being generated, from any thread; it ends after the call of a graph that is running.
  void cancel() { cancelled_ = true; }
  // Forget the conversation.
  void reset();

  const Tokens& tokens() const { return tokens_; }  // of the last prompt and answer
  const Stats& stats() const { return stats_; }     // of the last answer

 private:
  jakiro_finish_reason answer(TokenSequence& sequence, const ChunkCallback& callback);

  const std::shared_ptr<const Bundle> bundle_;
  Decoder decoder_;
  Tokens tokens_;
  Stats stats_;
  std::atomic<bool> busy_{false}, cancelled_{false};
};

}  // namespace jakiro::runtime
