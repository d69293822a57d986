#include "session.h"

#include <chrono>

#include "errors.h"

namespace jakiro::runtime {
namespace {

// Marks a session as in use by one call.
class Busy {
 public:
  explicit Busy(std::atomic<bool>& flag) : flag_(flag) {
    if (flag_.exchange(true)) {
      throw UsageError("This session is in the middle of another call; finish one before the next, or open two sessions.");
    }
  }
  ~Busy() { flag_ = false; }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  std::atomic<bool>& flag_;
};

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point started) { return std::chrono::duration<double>(Clock::now() - started).count(); }

}  // namespace

Session::Session(std::shared_ptr<const Bundle> bundle, const DecoderOptions& options)
    : bundle_(std::move(bundle)), decoder_(*bundle_, options) {}

jakiro_finish_reason Session::generate(Tokens prompt, const GenerateOptions& options, const ChunkCallback& callback) {
  const Busy busy(busy_);
  TokenSequence sequence(*bundle_, std::move(prompt), options);
  cancelled_ = false;
  sequence.stats.reused_tokens = decoder_.reuse(tokens_, sequence.tokens());
  tokens_.clear();  // what the caches stand for is unknown until the answer ends
  jakiro_finish_reason reason;
  try {
    reason = answer(sequence, callback);
  } catch (...) {
    decoder_.truncate(0);
    stats_ = sequence.stats;
    throw;
  }
  tokens_ = sequence.tokens();
  stats_ = sequence.stats;
  return reason;
}

jakiro_finish_reason Session::answer(TokenSequence& sequence, const ChunkCallback& callback) {
  Stats& stats = sequence.stats;
  const auto cancelled = [this] { return cancelled_.load(); };
  const auto started = Clock::now();
  Gain gain = decoder_.prefill(sequence, cancelled);
  stats.prefill = stats.first_token = seconds_since(started);
  const double draft_before = decoder_.draft_seconds(), target_before = decoder_.target_seconds();
  double decoding = 0;  // without the caller's time
  auto resumed = Clock::now();
  while (!gain.tokens.empty()) {
    const GenerationChunk chunk = sequence.take(gain);
    const bool ended = chunk.finish_reason != JAKIRO_FINISH_NONE;
    if (ended) decoder_.truncate(static_cast<int64_t>(sequence.tokens().size()) - 1);  // what lies beyond the end is forgotten
    decoding += seconds_since(resumed);
    stats.draft = decoder_.draft_seconds() - draft_before;
    stats.target = decoder_.target_seconds() - target_before;
    stats.host = decoding - stats.draft - stats.target;
    const bool goes_on = callback(chunk);
    if (ended) return chunk.finish_reason;
    if (!goes_on || cancelled()) break;
    resumed = Clock::now();
    gain = decoder_.round(sequence);
  }
  return JAKIRO_FINISH_CANCELLED;
}

void Session::reset() {
  const Busy busy(busy_);
  tokens_.clear();
  decoder_.truncate(0);
}

}  // namespace jakiro::runtime
