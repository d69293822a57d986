// Errors as a caller of the library sees them: one sentence with what was found, what was expected and what to do.
#pragma once

#include <stdexcept>
#include <string>

#include "jakiro/jakiro.h"

namespace jakiro::runtime {

class UserError : public std::runtime_error {
 public:
  UserError(jakiro_code code, const std::string& sentence) : std::runtime_error(sentence), code(code) {}
  const jakiro_code code;
};

// A job that failed: a damaged engine, an inference library that is not there.
struct EngineError : UserError {
  explicit EngineError(const std::string& sentence) : UserError(JAKIRO_ERROR_ENGINE, sentence) {}
};

// A wrong call or unusable input: a missing folder, an empty prompt, a prompt that does not fit.
struct UsageError : UserError {
  explicit UsageError(const std::string& sentence) : UserError(JAKIRO_ERROR_USAGE, sentence) {}
};

// A prompt that does not fit the engine's context.
struct ContextError : UserError {
  explicit ContextError(const std::string& sentence) : UserError(JAKIRO_ERROR_CONTEXT, sentence) {}
};

}  // namespace jakiro::runtime
