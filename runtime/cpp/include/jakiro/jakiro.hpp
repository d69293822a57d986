// Jakiro's runtime in C++17: a header over the C interface of jakiro.h, which says what each option means.
//
//     jakiro::Engine engine("out/smollm2");
//     jakiro::Session session(engine);
//     session.generate(prompt, [](const jakiro::Chunk& chunk) { ...; return true; });
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "jakiro/jakiro.h"

namespace jakiro {

// What a call says when it fails.
class Error : public std::runtime_error {
 public:
  Error(jakiro_code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  jakiro_code code() const { return code_; }

 private:
  jakiro_code code_;
};

// Throws what a status says, if it is one.
inline void check(jakiro_status* status) {
  if (status == nullptr) return;
  const std::unique_ptr<jakiro_status, void (*)(jakiro_status*)> owned(status, jakiro_status_free);
  throw Error(jakiro_status_code(status), jakiro_status_message(status));
}

// A structure of jakiro.h with its size set, and defaults in every other field.
template <typename Struct>
Struct defaults() {
  Struct made{};
  made.size = sizeof(Struct);
  return made;
}

using Tokens = std::vector<int32_t>;

// Natural log-probability of a token, and of the best ones.
struct TokenLogprob {
  int32_t token;
  double logprob;
  std::vector<jakiro_candidate> top;
};

// What one round brought.
struct Chunk {
  Tokens tokens;
  jakiro_finish_reason finish_reason;
  std::vector<TokenLogprob> logprobs;  // where they were asked for

  explicit Chunk(const jakiro_chunk& chunk)
      : tokens(chunk.tokens, chunk.tokens + chunk.token_count), finish_reason(chunk.finish_reason) {
    for (size_t place = 0; chunk.logprobs != nullptr && place < chunk.token_count; ++place) {
      const jakiro_token_logprob& each = chunk.logprobs[place];
      logprobs.push_back({each.token, each.logprob, {each.top, each.top + each.top_count}});
    }
  }
};

// An opened engine directory; copies share it. Safe to use from several threads.
class Engine {
 public:
  explicit Engine(const std::string& directory, const jakiro_engine_options& options = defaults<jakiro_engine_options>()) {
    jakiro_engine* opened = nullptr;
    check(jakiro_engine_open(directory.c_str(), &options, &opened));
    engine_.reset(opened, jakiro_engine_free);
  }

  jakiro_engine_info info() const {
    auto found = defaults<jakiro_engine_info>();
    check(jakiro_engine_get_info(get(), &found));
    return found;
  }

  const jakiro_engine* get() const { return engine_.get(); }

 private:
  std::shared_ptr<jakiro_engine> engine_;
};

// A conversation, for one thread at a time but for `cancel`.
class Session {
 public:
  explicit Session(const Engine& engine, const jakiro_session_options& options = defaults<jakiro_session_options>()) {
    jakiro_session* made = nullptr;
    check(jakiro_session_create(engine.get(), &options, &made));
    session_.reset(made);
  }

  // Answers a prompt; the callback gets each chunk, and stops the answer by giving false. What it throws is thrown here.
  jakiro_finish_reason generate(const Tokens& prompt, const std::function<bool(const Chunk&)>& callback,
                                const jakiro_generate_options& options = defaults<jakiro_generate_options>()) {
    Receiver receiver{callback, nullptr};
    jakiro_finish_reason reason = JAKIRO_FINISH_NONE;
    check(jakiro_session_generate(session_.get(), prompt.data(), prompt.size(), &options, receive, &receiver, &reason));
    if (receiver.thrown) std::rethrow_exception(receiver.thrown);
    return reason;
  }

  void cancel() { jakiro_session_cancel(session_.get()); }
  void reset() { check(jakiro_session_reset(session_.get())); }

  jakiro_stats stats() const {
    auto found = defaults<jakiro_stats>();
    check(jakiro_session_get_stats(session_.get(), &found));
    return found;
  }

 private:
  struct Receiver {
    const std::function<bool(const Chunk&)>& callback;
    std::exception_ptr thrown;
  };

  static int receive(const jakiro_chunk* chunk, void* user) {
    auto& receiver = *static_cast<Receiver*>(user);
    try {
      return receiver.callback(Chunk(*chunk)) ? 0 : 1;
    } catch (...) {
      receiver.thrown = std::current_exception();
      return 1;
    }
  }

  struct Free {
    void operator()(jakiro_session* session) const { jakiro_session_free(session); }
  };
  std::unique_ptr<jakiro_session, Free> session_;
};

}  // namespace jakiro
