/* Greedy decoding in plain C: token ids in, token ids out.
 *
 *     ./minimal DIR ID...      DIR is what jakiro-export wrote
 */
#include <jakiro/jakiro.h>
#include <stdio.h>
#include <stdlib.h>

static int show(const jakiro_chunk* chunk, void* user) {
  (void)user;
  for (size_t n = 0; n < chunk->token_count; ++n) printf("%d ", (int)chunk->tokens[n]);
  fflush(stdout);
  return 0; /* go on */
}

static void check(jakiro_status* status) {
  if (status == NULL) return;
  fprintf(stderr, "Error: %s\n", jakiro_status_message(status));
  jakiro_status_free(status);
  exit(1);
}

int main(int count, char** arguments) {
  int32_t prompt[1024];
  size_t length = 0;
  jakiro_engine* engine = NULL;
  jakiro_session* session = NULL;
  jakiro_generate_options options = {sizeof options};
  if (count < 3 || count > 1026) {
    fprintf(stderr, "Usage: %s DIR ID...\n", arguments[0]);
    return 2;
  }
  for (int n = 2; n < count; ++n) prompt[length++] = (int32_t)strtol(arguments[n], NULL, 10);
  options.max_new_tokens = 20;
  check(jakiro_engine_open(arguments[1], NULL, &engine));
  check(jakiro_session_create(engine, NULL, &session));
  check(jakiro_session_generate(session, prompt, length, &options, show, NULL, NULL));
  printf("\n");
  jakiro_session_free(session);
  jakiro_engine_free(engine);
  return 0;
}
