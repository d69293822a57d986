// A sampled answer in C++, with speculation and without: the same tokens, in fewer passes of the target.
//
//     ./sampled DIR ID...      DIR is what jakiro-export wrote
#include <cstdio>
#include <cstdlib>
#include <jakiro/jakiro.hpp>

namespace {

jakiro::Tokens answer(const jakiro::Engine& engine, const jakiro::Tokens& prompt, bool speculate) {
  auto how = jakiro::defaults<jakiro_session_options>();
  how.no_speculation = speculate ? 0 : 1;
  auto what = jakiro::defaults<jakiro_generate_options>();
  what.max_new_tokens = 40;
  what.temperature = 0.8;
  what.seed = 7;

  jakiro::Session session(engine, how);
  jakiro::Tokens tokens;
  const auto keep = [&](const jakiro::Chunk& chunk) {
    tokens.insert(tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
    return true;  // go on
  };
  session.generate(prompt, keep, what);
  std::fprintf(stderr, "%zu tokens, %d passes of the target after the prompt\n", tokens.size(),
               static_cast<int>(session.stats().rounds));
  return tokens;
}

}  // namespace

int main(int count, char** arguments) try {
  if (count < 3) {
    std::fprintf(stderr, "Usage: %s DIR ID...\n", arguments[0]);
    return 2;
  }
  const jakiro::Engine engine(arguments[1]);
  jakiro::Tokens prompt;
  for (int n = 2; n < count; ++n) prompt.push_back(std::atoi(arguments[n]));
  const jakiro::Tokens tokens = answer(engine, prompt, true);
  for (const int32_t token : tokens) std::printf("%d ", static_cast<int>(token));
  std::printf("\n");
  return tokens == answer(engine, prompt, false) ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "Error: %s\n", error.what());
  return 1;
}
