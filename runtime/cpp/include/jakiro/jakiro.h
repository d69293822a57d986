/* Jakiro's runtime in C: open an engine directory that jakiro-export wrote, and decode with it. docs/c-api.md has examples.
 *
 * Every function that can fail returns a status: NULL for success, else an error with a code and a sentence, which the caller
 * frees. Nothing is thrown across this interface, and the library has no global state.
 *
 * Structures that a caller fills begin with their own size; zero is the default of every other field:
 *
 *     jakiro_session_options options = {sizeof options};
 *     options.chunk = 64;
 *
 * Later versions add fields at the end. An engine may be used by several threads at once, a session by one at a time.
 */
#ifndef JAKIRO_H
#define JAKIRO_H

#include <stddef.h>
#include <stdint.h>

#if defined(JAKIRO_BUILD)
#define JAKIRO_API __attribute__((visibility("default")))
#else
#define JAKIRO_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define JAKIRO_VERSION "0.1.0"

typedef struct jakiro_status jakiro_status;
typedef struct jakiro_engine jakiro_engine;
typedef struct jakiro_session jakiro_session;

/* The library's version, as JAKIRO_VERSION of the header that it was built with. */
JAKIRO_API const char* jakiro_version(void);

/* --- Errors --- */

typedef enum jakiro_code {
  JAKIRO_OK = 0,
  JAKIRO_ERROR_USAGE = 1,   /* a wrong call or unusable input */
  JAKIRO_ERROR_CONTEXT = 2, /* a prompt that does not fit the engine's context */
  JAKIRO_ERROR_ENGINE = 3,  /* a damaged engine, or an inference library that is not there */
  JAKIRO_ERROR_MEMORY = 4,  /* not enough memory */
  JAKIRO_ERROR_INTERNAL = 5 /* a fault of this library */
} jakiro_code;

/* JAKIRO_OK for NULL. */
JAKIRO_API jakiro_code jakiro_status_code(const jakiro_status* status);
/* One sentence, valid until the status is freed; empty for NULL. */
JAKIRO_API const char* jakiro_status_message(const jakiro_status* status);
/* NULL is allowed, here and in every other function that frees. */
JAKIRO_API void jakiro_status_free(jakiro_status* status);

/* --- Engines --- */

typedef struct jakiro_engine_options {
  size_t size;
  const char* onnxruntime; /* ONNX Runtime's library, or a folder that has it; NULL: ONNXRUNTIME_ROOT, then the system's */
  int32_t threads;         /* 0: one for each physical core */
} jakiro_engine_options;

/* Opens an engine directory. options may be NULL. The weights are freed with the engine and the last of its sessions. */
JAKIRO_API jakiro_status* jakiro_engine_open(const char* directory, const jakiro_engine_options* options, jakiro_engine** engine);
JAKIRO_API void jakiro_engine_free(jakiro_engine* engine);

typedef struct jakiro_engine_info {
  size_t size;
  const char* name;    /* of the target, as the user called it; valid while the engine is open */
  const char* variant; /* the head's family; valid while the engine is open */
  int32_t vocab_size;
  int32_t max_context; /* the most tokens of prompt and answer together */
  int32_t nodes;       /* of a drafted tree */
  int32_t bitwise;     /* 1 where logits agree to the last bit with speculation and without */
} jakiro_engine_info;

/* info->size is set by the caller. */
JAKIRO_API jakiro_status* jakiro_engine_get_info(const jakiro_engine* engine, jakiro_engine_info* info);

/* --- Sessions: one conversation each --- */

typedef struct jakiro_session_options {
  size_t size;
  int32_t no_speculation; /* 1: decode with the target alone, in the same loop */
  int32_t no_lookup;      /* 1: no n-grams in the trees */
  int32_t chunk;          /* rows of a prompt that are processed in one call; 0: 128 */
  int32_t nodes;          /* verify only the best of every tree; 0: as many as are worth their rows */
} jakiro_session_options;

/* options may be NULL. */
JAKIRO_API jakiro_status* jakiro_session_create(const jakiro_engine* engine, const jakiro_session_options* options,
                                                jakiro_session** session);
JAKIRO_API void jakiro_session_free(jakiro_session* session);

typedef struct jakiro_logit_bias {
  int32_t token;
  double bias; /* added to its score; -1e9 forbids it */
} jakiro_logit_bias;

/* A rule of the caller's, which changes scores before temperature. tokens: prompt, answer so far and the path in the tree. Its
 * result must depend on these arguments alone: that keeps the answer the same with speculation and without. */
typedef void (*jakiro_logits_hook)(const int32_t* tokens, size_t token_count, double* scores, size_t vocab_size, void* user);

/* Zeros are greedy decoding. */
typedef struct jakiro_generate_options {
  size_t size;
  int32_t max_new_tokens;    /* 0: 512 */
  int32_t min_new_tokens;    /* no end of sequence before the answer has this many tokens */
  double temperature;        /* 0 takes the best token; otherwise scores are divided by it and a token is drawn */
  int32_t top_k;             /* draw among the k best; 0: all */
  int32_t logprobs;          /* 1: report the log-probability of each token */
  double top_p;              /* draw among the fewest tokens that hold this much probability; 0: all */
  double min_p;              /* draw among tokens at least this probable, relative to the best one */
  double repetition_penalty; /* scores of tokens that occurred are divided (above 0) or multiplied (below) by it; 0: none */
  uint64_t seed;             /* the same seed gives the same answer, with speculation and without */
  const jakiro_logit_bias* logit_bias;
  size_t logit_bias_count;
  jakiro_logits_hook logits_hook; /* NULL: none */
  void* logits_hook_user;
  int32_t top_logprobs; /* with logprobs: of this many best tokens too */
} jakiro_generate_options;

typedef enum jakiro_finish_reason {
  JAKIRO_FINISH_NONE = 0,      /* the answer goes on */
  JAKIRO_FINISH_EOS = 1,       /* a token that ends answers */
  JAKIRO_FINISH_LENGTH = 2,    /* max_new_tokens */
  JAKIRO_FINISH_CONTEXT = 3,   /* the engine's limit */
  JAKIRO_FINISH_CANCELLED = 4, /* the callback or jakiro_session_cancel */
  JAKIRO_FINISH_CONSTRAINT = 5 /* the rules allow no token */
} jakiro_finish_reason;

typedef struct jakiro_candidate {
  int32_t token;
  double logprob;
} jakiro_candidate;

/* Natural log-probability of a token under the target, before any rule; and of the best ones, best first. */
typedef struct jakiro_token_logprob {
  int32_t token;
  double logprob;
  const jakiro_candidate* top;
  size_t top_count;
} jakiro_token_logprob;

/* What one round brought; valid during the callback. */
typedef struct jakiro_chunk {
  size_t size;
  const int32_t* tokens;
  size_t token_count;
  jakiro_finish_reason finish_reason;   /* JAKIRO_FINISH_NONE but for the last chunk */
  const jakiro_token_logprob* logprobs; /* [token_count]; NULL where they were not asked for */
} jakiro_chunk;

/* 0 goes on, anything else stops the answer. */
typedef int (*jakiro_chunk_callback)(const jakiro_chunk* chunk, void* user);

/* Answers a prompt, a chunk a round. What the prompt shares with the session's last prompt and answer is not processed again.
 * options and reason may be NULL. The session can go on after a stop or an error. */
JAKIRO_API jakiro_status* jakiro_session_generate(jakiro_session* session, const int32_t* prompt, size_t prompt_count,
                                                  const jakiro_generate_options* options, jakiro_chunk_callback callback,
                                                  void* user, jakiro_finish_reason* reason);
/* Ends the answer that is being generated, from any thread; nothing where there is none. */
JAKIRO_API void jakiro_session_cancel(jakiro_session* session);
/* Forgets the conversation. */
JAKIRO_API jakiro_status* jakiro_session_reset(jakiro_session* session);

#define JAKIRO_STATS_DEPTHS 16

/* Figures of a session's last answer; times in seconds. */
typedef struct jakiro_stats {
  size_t size;
  int64_t prompt_tokens, reused_tokens, new_tokens;
  int64_t rounds;                        /* target passes after the prompt */
  int64_t drafts;                        /* rounds that drafted a tree */
  int64_t verified;                      /* tree nodes that the target verified, over all rounds */
  int64_t from_ngrams;                   /* tokens that n-grams proposed and the head had not drafted */
  int64_t accepted[JAKIRO_STATS_DEPTHS]; /* rounds that brought at least 1, 2, ... tokens of a tree into the answer */
  double prefill, draft, target;
  double host; /* everything outside the two graph calls, after the prompt */
} jakiro_stats;

/* stats->size is set by the caller. */
JAKIRO_API jakiro_status* jakiro_session_get_stats(const jakiro_session* session, jakiro_stats* stats);

#ifdef __cplusplus
}
#endif
#endif
