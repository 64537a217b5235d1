/*
 * Loads a GGUF into llama.cpp, from the store or by path, and generates a few tokens, always the likeliest one.
 *
 *     generate store STORE REPO PATH        through a FILE * of model_cache_stdio.h; STORE "" is the default one
 *     generate read FILE                    by path, read into memory, as from the store
 *     generate mmap FILE                    by path, mapped: llama.cpp's own default
 *
 * Prints one line of JSON: the tokens, a digest of every logit on the way, what loading took, and how much private memory it
 * left. `make loaders` builds and runs it; by hand:
 *
 *     cargo build --release -p model-cache-ffi
 *     cc -std=c11 -Icrates/model-cache-ffi/include -I$LLAMA/include -I$LLAMA/ggml/include \
 *        crates/model-cache-ffi/examples/llama/generate.c -Ltarget/release -lmodel_cache -L$LLAMA_BUILD/bin -lllama -o generate
 */
#define _GNU_SOURCE
#include "model_cache.h"
#include "model_cache_stdio.h"

#include <llama.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TOKENS = 12, THREADS = 2 };
/* Ids that every model has: no tokenizer is needed to compare two ways to load one. */
static llama_token prompt[] = {1, 15, 43, 7, 99, 23};
enum { PROMPT = sizeof prompt / sizeof *prompt };

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* A field of /proc/self/status that is in kB. */
static long status_kib(const char *field) {
    char line[256];
    long kib = -1;
    FILE *status = fopen("/proc/self/status", "r");
    while (status != NULL && fgets(line, sizeof line, status) != NULL)
        if (strncmp(line, field, strlen(field)) == 0 && line[strlen(field)] == ':') kib = atol(line + strlen(field) + 1);
    if (status != NULL) fclose(status);
    return kib;
}

/* llama.cpp tells much; what went wrong is all that is wanted here. */
static void tell(enum ggml_log_level level, const char *text, void *unused) {
    (void)unused;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static _Noreturn void fail(mc_error *error) {
    fprintf(stderr, "error: %s\n", error != NULL ? mc_error_text(error) : "no memory is left");
    exit(error != NULL ? mc_error_code(error) : 1);
}

/* This is all there is to loading from a store. */
static struct llama_model *load_from_store(const char *folder, const char *repo, const char *path,
                                           struct llama_model_params params) {
    mc_error *error = NULL;
    mc_store *store;
    mc_file *file;
    if (mc_store_open(*folder ? folder : NULL, &store, &error) != MC_OK) fail(error);
    if (mc_file_open(store, repo, path, &file, &error) != MC_OK) fail(error);
    mc_store_close(store);

    FILE *stream = mc_file_fopen_gguf(file, &error); /* refuses a part of a split model */
    if (stream == NULL) fail(error);
    mc_file_close(file);

    params.load_mode = LLAMA_LOAD_MODE_NONE; /* a stream can't be mapped */
    struct llama_model *model = llama_model_load_from_file_ptr(stream, params);
    fclose(stream); /* every weight was copied: from here on the file may be removed */
    return model;
}

static llama_token likeliest(const float *logits, int count) {
    int best = 0;
    for (int i = 1; i < count; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* FNV-1a. */
static uint64_t digest(uint64_t hash, const void *data, size_t bytes) {
    const unsigned char *at = data;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    return hash;
}

int main(int argc, char **argv) {
    const int from_store = argc == 5 && strcmp(argv[1], "store") == 0;
    const int mapped = argc == 3 && strcmp(argv[1], "mmap") == 0;
    if (!from_store && !mapped && !(argc == 3 && strcmp(argv[1], "read") == 0)) {
        fputs("usage: generate store STORE REPO PATH | read FILE | mmap FILE\n", stderr);
        return 2;
    }
    llama_log_set(tell, NULL);
    llama_backend_init();

    struct llama_model_params params = llama_model_default_params();
    const long before_kib = status_kib("RssAnon");
    const double start = now_ms();
    struct llama_model *model;
    if (from_store) {
        model = load_from_store(argv[2], argv[3], argv[4], params);
    } else {
        params.load_mode = mapped ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
        model = llama_model_load_from_file(argv[2], params);
    }
    const double load_ms = now_ms() - start;
    if (model == NULL) {
        fputs("error: llama.cpp could not load it\n", stderr);
        return 1;
    }
    const long anon_kib = status_kib("RssAnon") - before_kib;

    struct llama_context_params context_params = llama_context_default_params();
    context_params.n_ctx = 64;
    context_params.n_threads = context_params.n_threads_batch = THREADS;
    struct llama_context *context = llama_init_from_model(model, context_params);
    if (context == NULL) return 1;
    const int words = llama_vocab_n_tokens(llama_model_get_vocab(model));
    llama_token tokens[TOKENS];
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    struct llama_batch batch = llama_batch_get_one(prompt, PROMPT);
    for (int i = 0; i < TOKENS; i++) {
        if (llama_decode(context, batch) != 0) return 1;
        const float *logits = llama_get_logits_ith(context, -1);
        hash = digest(hash, logits, (size_t)words * sizeof *logits);
        tokens[i] = likeliest(logits, words);
        batch = llama_batch_get_one(&tokens[i], 1);
    }

    printf("{\"tokens\": [");
    for (int i = 0; i < TOKENS; i++) printf("%s%d", i ? ", " : "", (int)tokens[i]);
    printf("], \"logits\": \"%016" PRIx64 "\", \"load_ms\": %.1f, \"anon_kib\": %ld}\n", hash, load_ms, anon_kib);
    llama_free(context);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
