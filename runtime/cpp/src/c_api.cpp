// The C interface: checks what callers give, and turns exceptions into statuses.
#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "bundle.h"
#include "errors.h"
#include "jakiro/jakiro.h"
#include "session.h"

using namespace jakiro::runtime;

struct jakiro_status {
  jakiro_code code;
  std::string message;
};

struct jakiro_engine {
  std::shared_ptr<const Bundle> bundle;
};

struct jakiro_session {
  Session session;
};

namespace {

jakiro_status kNoMemory{JAKIRO_ERROR_MEMORY, ""};  // there is none for a status of its own; never changed

jakiro_status* failure(jakiro_code code, const char* message) noexcept {
  try {
    return new jakiro_status{code, message};
  } catch (...) {
    return &kNoMemory;
  }
}

// Runs a call and turns what it throws into a status.
template <typename Call>
jakiro_status* guarded(Call call) noexcept {
  try {
    call();
    return nullptr;
  } catch (const UserError& error) {
    return failure(error.code, error.what());
  } catch (const std::bad_alloc&) {
    return failure(JAKIRO_ERROR_MEMORY, "There is not enough memory; close other programs, or give a shorter prompt.");
  } catch (const std::exception& error) {
    return failure(JAKIRO_ERROR_INTERNAL, error.what());
  } catch (...) {
    return failure(JAKIRO_ERROR_INTERNAL, "An unknown exception was thrown.");
  }
}

void require(bool given, const char* what) {
  if (!given) throw UsageError(std::string(what) + " is NULL, which is not allowed here.");
}

// A caller's structure as this version knows it: fields that an older caller does not have are 0. nullptr gives defaults.
template <typename Struct>
Struct versioned(const Struct* given, const char* name) {
  Struct known{};
  if (given == nullptr) return known;
  const size_t size = given->size;
  if (size < sizeof(size_t)) {
    throw UsageError(std::string(name) + ".size is " + std::to_string(size) + "; sizeof(" + name + ") was expected.");
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t place = sizeof(Struct); place < size; ++place) {
    if (bytes[place] != 0) throw UsageError(std::string(name) + " sets a field that this version of the library does not know.");
  }
  std::memcpy(&known, given, std::min(size, sizeof(Struct)));
  return known;
}

// Fills a caller's structure as far as the caller knows it.
template <typename Struct>
void fill(Struct* out, Struct found, const char* name) {
  require(out != nullptr, name);
  const size_t size = out->size;
  if (size < sizeof(size_t)) {
    throw UsageError(std::string(name) + ".size is " + std::to_string(size) + "; sizeof(" + name + ") was expected.");
  }
  found.size = std::min(size, sizeof(Struct));
  std::memcpy(out, &found, found.size);
}

int32_t at_least(int32_t value, int32_t least, const char* name) {
  if (value < least) {
    throw UsageError(std::string(name) + " is " + std::to_string(value) + "; " + std::to_string(least) + " or more is expected.");
  }
  return value;
}

DecoderOptions decoder_options(const jakiro_session_options& given) {
  DecoderOptions options;
  options.speculate = given.no_speculation == 0;
  options.ngrams = given.no_lookup == 0;
  if (given.chunk != 0) options.chunk = at_least(given.chunk, 2, "chunk");
  options.nodes = at_least(given.nodes, 0, "nodes");
  return options;
}

Sampling sampling_of(const jakiro_generate_options& given) {
  require(given.logit_bias != nullptr || given.logit_bias_count == 0, "logit_bias");
  Sampling sampling;
  sampling.temperature = given.temperature;
  sampling.top_k = given.top_k;
  if (given.top_p != 0) sampling.top_p = given.top_p;
  sampling.min_p = given.min_p;
  if (given.repetition_penalty != 0) sampling.repetition_penalty = given.repetition_penalty;
  for (size_t place = 0; place < given.logit_bias_count; ++place) {
    sampling.logit_bias[given.logit_bias[place].token] = given.logit_bias[place].bias;
  }
  sampling.min_new_tokens = given.min_new_tokens;
  if (given.logprobs != 0) sampling.logprobs = given.top_logprobs;
  sampling.seed = given.seed;
  if (given.logits_hook != nullptr) {
    sampling.hook = [hook = given.logits_hook, user = given.logits_hook_user](const Tokens& prefix, std::vector<double>& scores) {
      hook(prefix.data(), prefix.size(), scores.data(), scores.size(), user);
    };
  }
  return sampling;
}

GenerateOptions generate_options(const jakiro_generate_options& given) {
  GenerateOptions options;
  if (given.max_new_tokens != 0) options.max_new_tokens = given.max_new_tokens;
  options.sampling = sampling_of(given);
  return options;
}

// A chunk as the callback sees it.
class ShownChunk {
 public:
  explicit ShownChunk(const GenerationChunk& chunk) {
    std::vector<size_t> firsts;
    for (const TokenLogprob& each : chunk.logprobs) {
      firsts.push_back(top_.size());
      for (const auto& [token, logprob] : each.top) top_.push_back({token, logprob});
    }
    for (size_t place = 0; place < firsts.size(); ++place) {
      const TokenLogprob& each = chunk.logprobs[place];
      logprobs_.push_back({each.token, each.logprob, top_.data() + firsts[place], each.top.size()});
    }
    shown.size = sizeof(jakiro_chunk);
    shown.tokens = chunk.tokens.data();
    shown.token_count = chunk.tokens.size();
    shown.finish_reason = chunk.finish_reason;
    shown.logprobs = logprobs_.empty() ? nullptr : logprobs_.data();
  }

  jakiro_chunk shown{};

 private:
  std::vector<jakiro_candidate> top_;
  std::vector<jakiro_token_logprob> logprobs_;
};

}  // namespace

const char* jakiro_version(void) { return JAKIRO_VERSION; }

jakiro_code jakiro_status_code(const jakiro_status* status) { return status != nullptr ? status->code : JAKIRO_OK; }

const char* jakiro_status_message(const jakiro_status* status) { return status != nullptr ? status->message.c_str() : ""; }

void jakiro_status_free(jakiro_status* status) {
  if (status != &kNoMemory) delete status;
}

jakiro_status* jakiro_engine_open(const char* directory, const jakiro_engine_options* options, jakiro_engine** engine) {
  return guarded([&] {
    require(directory != nullptr, "directory");
    require(engine != nullptr, "engine");
    const auto given = versioned(options, "jakiro_engine_options");
    BackendOptions backend;
    if (given.onnxruntime != nullptr) backend.onnxruntime = given.onnxruntime;
    backend.threads = at_least(given.threads, 0, "threads");
    *engine = new jakiro_engine{Bundle::open(directory, backend)};
  });
}

void jakiro_engine_free(jakiro_engine* engine) { delete engine; }

jakiro_status* jakiro_engine_get_info(const jakiro_engine* engine, jakiro_engine_info* info) {
  return guarded([&] {
    require(engine != nullptr, "engine");
    const Manifest& manifest = engine->bundle->manifest;
    jakiro_engine_info found{};
    found.name = manifest.model.name.c_str();
    found.variant = manifest.draft.variant.c_str();
    found.vocab_size = static_cast<int32_t>(manifest.model.vocab_size);
    found.max_context = static_cast<int32_t>(manifest.model.max_context);
    found.nodes = static_cast<int32_t>(manifest.draft.nodes);
    found.bitwise = manifest.bitwise ? 1 : 0;
    fill(info, found, "jakiro_engine_info");
  });
}

jakiro_status* jakiro_session_create(const jakiro_engine* engine, const jakiro_session_options* options,
                                     jakiro_session** session) {
  return guarded([&] {
    require(engine != nullptr, "engine");
    require(session != nullptr, "session");
    const auto given = versioned(options, "jakiro_session_options");
    *session = new jakiro_session{Session(engine->bundle, decoder_options(given))};
  });
}

void jakiro_session_free(jakiro_session* session) { delete session; }

jakiro_status* jakiro_session_generate(jakiro_session* session, const int32_t* prompt, size_t prompt_count,
                                       const jakiro_generate_options* options, jakiro_chunk_callback callback, void* user,
                                       jakiro_finish_reason* reason) {
  return guarded([&] {
    require(session != nullptr, "session");
    require(prompt != nullptr || prompt_count == 0, "prompt");
    require(callback != nullptr, "callback");
    const auto given = versioned(options, "jakiro_generate_options");
    const auto receive = [&](const GenerationChunk& chunk) {
      const ShownChunk copy(chunk);
      return callback(&copy.shown, user) == 0;
    };
    const auto ended = session->session.generate(Tokens(prompt, prompt + prompt_count), generate_options(given), receive);
    if (reason != nullptr) *reason = ended;
  });
}

void jakiro_session_cancel(jakiro_session* session) {
  if (session != nullptr) session->session.cancel();
}

jakiro_status* jakiro_session_reset(jakiro_session* session) {
  return guarded([&] {
    require(session != nullptr, "session");
    session->session.reset();
  });
}

jakiro_status* jakiro_session_get_stats(const jakiro_session* session, jakiro_stats* stats) {
  return guarded([&] {
    require(session != nullptr, "session");
    const Stats& found = session->session.stats();
    jakiro_stats shown{};
    shown.prompt_tokens = found.prompt_tokens;
    shown.reused_tokens = found.reused_tokens;
    shown.new_tokens = found.new_tokens;
    shown.rounds = found.rounds;
    shown.drafts = found.drafts;
    shown.verified = found.verified;
    shown.from_ngrams = found.from_ngrams;
    std::copy_n(found.accepted.begin(), std::min<size_t>(found.accepted.size(), JAKIRO_STATS_DEPTHS), shown.accepted);
    shown.prefill = found.prefill;
    shown.draft = found.draft;
    shown.target = found.target;
    shown.host = found.host;
    fill(stats, shown, "jakiro_stats");
  });
}
