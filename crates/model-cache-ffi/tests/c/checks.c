/*
 * What a program in C gets: run by tests/c.rs, once for each of its checks.
 *
 *     checks CHECK STORE SOURCE
 *
 * STORE is a store with the repo org/local, SOURCE the folder it was imported from:
 *     large.bin     more than a chunk      small.txt    kept inline      empty       no bytes
 *     whole.gguf, part.gguf                a GGUF, and the first of two parts of one
 * Ends with 0, or with 1 and a line that says which check did not hold.
 */
#define _GNU_SOURCE
#include "model_cache.h"
#include "model_cache_stdio.h"

#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define REPO "org/local"
#define CHUNK (UINT64_C(100) << 20)

#define CHECK(condition)                                                                     \
    do {                                                                                     \
        if (!(condition)) {                                                                  \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __func__, __LINE__, #condition);   \
            exit(1);                                                                         \
        }                                                                                    \
    } while (0)

/* That a call went well. */
#define WELL(call)                                                                                              \
    do {                                                                                                        \
        mc_error *error = (mc_error *)1; /* what was there before must not matter */                            \
        const mc_code code = (call);                                                                            \
        if (code != MC_OK || error != NULL) {                                                                   \
            fprintf(stderr, "%s:%d: %s: %d, %s\n", __func__, __LINE__, #call, (int)code, mc_error_text(error)); \
            exit(1);                                                                                            \
        }                                                                                                       \
    } while (0)

/* That a call fails with a code and a text that begins, and ends, as said. */
#define FAILS(expected, begin, end, call)                                                                                \
    do {                                                                                                                 \
        mc_error *error = NULL;                                                                                          \
        const mc_code code = (call);                                                                                     \
        const char *text = mc_error_text(error);                                                                         \
        const size_t length = strlen(text);                                                                              \
        if (code != (expected) || mc_error_code(error) != code || strncmp(text, begin, strlen(begin)) != 0 ||            \
            length < strlen(end) || strcmp(text + length - strlen(end), end) != 0) {                                     \
            fprintf(stderr, "%s:%d: %s: %d (%s), \"%s\"\n", __func__, __LINE__, #call, (int)code, mc_code_name(code), text); \
            exit(1);                                                                                                     \
        }                                                                                                                \
        mc_error_free(error);                                                                                            \
    } while (0)

static const char *store_path, *source_path;

static mc_store *open_store(void) {
    mc_store *store;
    WELL(mc_store_open(store_path, &store, &error));
    return store;
}

static mc_file *open_file(const mc_store *store, const char *path) {
    mc_file *file;
    WELL(mc_file_open(store, REPO, path, &file, &error));
    return file;
}

/* The file as it was imported. */
static unsigned char *source(const char *path, size_t *size) {
    char name[4096];
    snprintf(name, sizeof name, "%s/%s", source_path, path);
    FILE *file = fopen(name, "rb");
    CHECK(file != NULL);
    struct stat status;
    CHECK(fstat(fileno(file), &status) == 0);
    *size = (size_t)status.st_size;
    unsigned char *bytes = malloc(*size + 1);
    CHECK(bytes != NULL && fread(bytes, 1, *size, file) == *size);
    fclose(file);
    return bytes;
}

/* -- reading ------------------------------------------------------------------------------------------------------------- */

static void pointer(void) {
    mc_store *store = open_store();
    static const char *const paths[] = {"large.bin", "small.txt", "empty"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        size_t size;
        unsigned char *expected = source(paths[i], &size);
        bool found = false;
        WELL(mc_store_has_file(store, REPO, paths[i], &found, &error));
        CHECK(found);
        mc_file *file = open_file(store, paths[i]);
        CHECK(mc_file_size_bytes(file) == size);
        const uint8_t *bytes = mc_file_data(file);
        CHECK(bytes != NULL && (size == 0 || (uintptr_t)bytes % 64 == 0));
        CHECK(memcmp(bytes, expected, size) == 0);
        CHECK(strncmp(mc_file_digest(file), "sha256:", 7) == 0 && strlen(mc_file_digest(file)) == 7 + 64);
        mc_file_close(file);
        free(expected);
    }
    bool found = true;
    WELL(mc_store_has_file(store, REPO, "none", &found, &error));
    CHECK(!found);
    mc_store_close(store);
}

static void read_at(void) {
    mc_store *store = open_store();
    mc_file *file = open_file(store, "large.bin");
    size_t size;
    unsigned char *expected = source("large.bin", &size);
    CHECK(size > CHUNK);
    unsigned char *buffer = malloc(size);
    CHECK(buffer != NULL);
    WELL(mc_file_prefetch(file, &error));
    WELL(mc_file_read_at(file, 0, buffer, size, &error));
    CHECK(memcmp(buffer, expected, size) == 0);
    const struct {
        uint64_t offset;
        size_t count;
    } ranges[] = {{0, 1}, {1, 4096}, {CHUNK - 1, 1}, {CHUNK - 1, 2}, {CHUNK, 1}, {CHUNK - 77, 4096}, {size - 1, 1}, {size, 0}, {5, 0}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        memset(buffer, 0xA5, ranges[i].count + 1);
        WELL(mc_file_read_at(file, ranges[i].offset, buffer, ranges[i].count, &error));
        CHECK(memcmp(buffer, expected + ranges[i].offset, ranges[i].count) == 0);
        CHECK(buffer[ranges[i].count] == 0xA5);
    }
    mc_file_close(file);
    mc_store_close(store);
    free(buffer);
    free(expected);
}

/* A stream does what stdio does with the same file on disk. */
static void stream(void) {
    mc_store *store = open_store();
    mc_file *file = open_file(store, "large.bin");
    char name[4096];
    snprintf(name, sizeof name, "%s/large.bin", source_path);
    FILE *ours = mc_file_fopen(file), *theirs = fopen(name, "rb");
    CHECK(ours != NULL && theirs != NULL);
    const int64_t size = (int64_t)mc_file_size_bytes(file);
    /* The stream keeps what it needs. */
    mc_file_close(file);
    mc_store_close(store);
    static unsigned char mine[1 << 20], other[1 << 20];
    uint32_t random = 1;
    for (int round = 0; round < 4000; round++) {
        random = random * 1664525 + 1013904223;
        const int whence = (int[]){SEEK_SET, SEEK_CUR, SEEK_END}[random >> 30 > 2 ? 0 : random >> 30];
        /* Around the start, the end and the edge between chunks, beyond both ends too. */
        const int64_t near[] = {0, (int64_t)CHUNK, size};
        const int64_t at = near[random >> 8 & 3 ? (random >> 8 & 3) - 1 : 0] + (int64_t)(random >> 12 & 0x3fff) - 0x1000;
        const int64_t offset = whence == SEEK_SET ? at : whence == SEEK_END ? at - size : at - (int64_t)ftello(theirs);
        const int moved = fseeko(ours, offset, whence);
        CHECK(moved == fseeko(theirs, offset, whence));
        CHECK(ftello(ours) == ftello(theirs));
        const size_t count = round % 50 == 0 ? sizeof mine : (random >> 4 & 0x1fff);
        const size_t got = fread(mine, 1, count, ours);
        CHECK(got == fread(other, 1, count, theirs));
        CHECK(memcmp(mine, other, got) == 0);
        CHECK(!feof(ours) == !feof(theirs) && !ferror(ours) && !ferror(theirs));
        CHECK(ftello(ours) == ftello(theirs));
    }
    CHECK(fileno(ours) == -1);
    CHECK(fclose(ours) == 0);
    fclose(theirs);
    errno = 0;
    CHECK(mc_file_fopen(NULL) == NULL && errno == EINVAL);
}

/* -- errors -------------------------------------------------------------------------------------------------------------- */

static void errors(void) {
    char nowhere[4096], expected[8192];
    snprintf(nowhere, sizeof nowhere, "%s/none", store_path);
    snprintf(expected, sizeof expected, "there is no store at \"%s\"\nhint: the first pull or import makes it", nowhere);
    mc_store *store = (mc_store *)1;
    FAILS(MC_NOT_FOUND, expected, "", mc_store_open(nowhere, &store, &error));
    CHECK(store == NULL && access(nowhere, F_OK) != 0);
    FAILS(MC_USAGE, "store=\"\" can't be used", "", mc_store_open("", &store, &error));

    store = open_store();
    mc_file *file = (mc_file *)1;
    FAILS(MC_USAGE, "\"nonsense\" is not a repo name: ", "", mc_file_open(store, "nonsense", "x", &file, &error));
    CHECK(file == NULL);
    FAILS(MC_USAGE, "\"../x\" is not a file path", "", mc_file_open(store, REPO, "../x", &file, &error));
    FAILS(MC_NOT_FOUND, "none of org/local is not in the store", "\nhint: model-cache ls org/local",
          mc_file_open(store, REPO, "none", &file, &error));
    FAILS(MC_NOT_FOUND, "nothing of org/other is in the store\nhint: model-cache scan org/other", "",
          mc_file_open(store, "org/other", "x", &file, &error));
    FAILS(MC_USAGE, "mc_file_open: path is not UTF-8: byte 1 of \"x\xef\xbf\xbd\"", "",
          mc_file_open(store, REPO, "x\xff", &file, &error));
    bool found = true;
    FAILS(MC_USAGE, "\"nonsense\" is not", "", mc_store_has_file(store, "nonsense", "x", &found, &error));
    CHECK(!found);

    file = open_file(store, "small.txt");
    const uint64_t size = mc_file_size_bytes(file);
    unsigned char buffer[2] = {1, 2};
    snprintf(expected, sizeof expected, "range %d..%d does not lie in small.txt of org/local, which has %d bytes", (int)size - 1,
             (int)size + 1, (int)size);
    FAILS(MC_USAGE, expected, "", mc_file_read_at(file, size - 1, buffer, 2, &error));
    CHECK(buffer[0] == 1 && buffer[1] == 2);
    FAILS(MC_USAGE, "range ", "", mc_file_read_at(file, size + 1, buffer, 0, &error));
    FAILS(MC_USAGE, "range ", "", mc_file_read_at(file, UINT64_MAX, buffer, 2, &error));
    FAILS(MC_USAGE, "range ", "", mc_file_read_at(file, 1, buffer, SIZE_MAX, &error));
    mc_file_close(file);
    mc_store_close(store);

    /* Who wants no text gets the code. */
    CHECK(mc_store_open(nowhere, &store, NULL) == MC_NOT_FOUND);
    /* An error is its own: neither the next call nor the end of what it is about changes it. */
    mc_error *kept, *next;
    CHECK(mc_store_open(nowhere, &store, &kept) == MC_NOT_FOUND);
    CHECK(mc_store_open("", &store, &next) == MC_USAGE);
    CHECK(strstr(mc_error_text(kept), nowhere) != NULL && mc_error_code(kept) == MC_NOT_FOUND);
    mc_error_free(next);
    mc_error_free(kept);

    CHECK(strcmp(mc_code_name(MC_NOT_FOUND), "not_found") == 0 && strcmp(mc_code_name(-7), "unknown") == 0);
    CHECK(strcmp(mc_version(), getenv("EXPECTED_VERSION")) == 0);
}

static void nulls(void) {
    mc_store *store = open_store(), *no_store;
    mc_file *file = open_file(store, "small.txt"), *no_file;
    bool found;
    unsigned char byte;
    FAILS(MC_USAGE, "mc_store_open: store is NULL", "", mc_store_open(store_path, NULL, &error));
    FAILS(MC_USAGE, "mc_store_has_file: store is NULL", "", mc_store_has_file(NULL, REPO, "x", &found, &error));
    FAILS(MC_USAGE, "mc_store_has_file: repo is NULL", "", mc_store_has_file(store, NULL, "x", &found, &error));
    FAILS(MC_USAGE, "mc_store_has_file: path is NULL", "", mc_store_has_file(store, REPO, NULL, &found, &error));
    FAILS(MC_USAGE, "mc_store_has_file: found is NULL", "", mc_store_has_file(store, REPO, "x", NULL, &error));
    FAILS(MC_USAGE, "mc_file_open: store is NULL", "", mc_file_open(NULL, REPO, "x", &no_file, &error));
    FAILS(MC_USAGE, "mc_file_open: repo is NULL", "", mc_file_open(store, NULL, "x", &no_file, &error));
    FAILS(MC_USAGE, "mc_file_open: path is NULL", "", mc_file_open(store, REPO, NULL, &no_file, &error));
    CHECK(no_file == NULL);
    FAILS(MC_USAGE, "mc_file_open: file is NULL", "", mc_file_open(store, REPO, "x", NULL, &error));
    FAILS(MC_USAGE, "mc_file_read_at: file is NULL", "", mc_file_read_at(NULL, 0, &byte, 1, &error));
    FAILS(MC_USAGE, "mc_file_read_at: buffer is NULL", "", mc_file_read_at(file, 0, NULL, 1, &error));
    WELL(mc_file_read_at(file, 0, NULL, 0, &error));
    FAILS(MC_USAGE, "mc_file_check_gguf: file is NULL", "", mc_file_check_gguf(NULL, &error));
    FAILS(MC_USAGE, "mc_file_prefetch: file is NULL", "", mc_file_prefetch(NULL, &error));
    /* And with nothing to tell it by. */
    CHECK(mc_store_open(store_path, NULL, NULL) == MC_USAGE);
    CHECK(mc_store_has_file(NULL, NULL, NULL, NULL, NULL) == MC_USAGE);
    CHECK(mc_file_open(NULL, NULL, NULL, NULL, NULL) == MC_USAGE);
    CHECK(mc_file_read_at(NULL, 0, NULL, 0, NULL) == MC_USAGE);
    CHECK(mc_file_check_gguf(NULL, NULL) == MC_USAGE);
    CHECK(mc_file_clone(NULL) == NULL && mc_file_data(NULL) == NULL && mc_file_size_bytes(NULL) == 0);
    CHECK(strcmp(mc_file_digest(NULL), "") == 0 && strcmp(mc_error_text(NULL), "") == 0 && mc_error_code(NULL) == MC_OK);
    mc_file_close(NULL);
    mc_store_close(NULL);
    mc_error_free(NULL);
    mc_file_close(file);
    mc_store_close(store);
    /* NULL for a folder is the default store, which the test's environment says. */
    WELL(mc_store_open(NULL, &no_store, &error));
    mc_file_close(open_file(no_store, "small.txt"));
    mc_store_close(no_store);
}

/* -- handles ------------------------------------------------------------------------------------------------------------- */

/* A file outlives its store, a clone the file it is of, and closing one of two stores leaves the other. */
static void lifetimes(void) {
    mc_store *one = open_store(), *two = open_store();
    mc_file *file = open_file(one, "large.bin");
    mc_store_close(one);
    const uint8_t *bytes = mc_file_data(file);
    mc_file *clone = mc_file_clone(file);
    CHECK(clone != NULL && clone != file && mc_file_data(clone) == bytes);
    mc_file_close(file);
    mc_file_close(open_file(two, "small.txt"));
    mc_store_close(two);
    size_t size;
    unsigned char *expected = source("large.bin", &size);
    CHECK(mc_file_size_bytes(clone) == size && memcmp(bytes, expected, size) == 0);
    mc_file_close(clone);
    free(expected);
    /* Opened anew after everything was closed. */
    mc_store *again = open_store();
    mc_file_close(open_file(again, "large.bin"));
    mc_store_close(again);
}

struct shared {
    const mc_store *store;
    const mc_file *file;
    const unsigned char *expected;
    size_t size;
};

static void *reader(void *argument) {
    const struct shared *shared = argument;
    static _Thread_local unsigned char buffer[1 << 16];
    uint32_t random = (uint32_t)(uintptr_t)&buffer;
    for (int round = 0; round < 300; round++) {
        random = random * 1664525 + 1013904223;
        const size_t offset = random % (shared->size - sizeof buffer);
        WELL(mc_file_read_at(shared->file, offset, buffer, sizeof buffer, &error));
        CHECK(memcmp(buffer, shared->expected + offset, sizeof buffer) == 0);
        FAILS(MC_NOT_FOUND, "none of org/local", "model-cache ls org/local", mc_file_open(shared->store, REPO, "none", &(mc_file *){NULL}, &error));
        mc_file *file = open_file(shared->store, round % 2 ? "large.bin" : "small.txt"), *clone = mc_file_clone(shared->file);
        CHECK(mc_file_data(clone)[offset] == shared->expected[offset]);
        mc_file_close(file);
        mc_file_close(clone);
    }
    return NULL;
}

static void threads(void) {
    mc_store *store = open_store();
    mc_file *file = open_file(store, "large.bin");
    struct shared shared = {store, file, NULL, 0};
    unsigned char *expected = source("large.bin", &shared.size);
    shared.expected = expected;
    pthread_t handles[8];
    for (size_t i = 0; i < 8; i++) CHECK(pthread_create(&handles[i], NULL, reader, &shared) == 0);
    for (size_t i = 0; i < 8; i++) CHECK(pthread_join(handles[i], NULL) == 0);
    mc_file_close(file);
    mc_store_close(store);
    free(expected);
}

/* A child reads what its parent had open, is told that it can't open more with its parent's store, and can with its own. */
static void forked(void) {
    mc_store *store = open_store();
    mc_file *file = open_file(store, "large.bin");
    size_t size;
    unsigned char *expected = source("large.bin", &size);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(memcmp(mc_file_data(file), expected, size) == 0);
        mc_file *more;
        FAILS(MC_OTHER, "could not ", "hint: open the store after the fork, in the process that uses it",
              mc_file_open(store, REPO, "small.txt", &more, &error));
        mc_store *own = open_store();
        mc_file_close(open_file(own, "small.txt"));
        mc_store_close(own);
        mc_file_close(file);
        mc_store_close(store);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(memcmp(mc_file_data(file), expected, size) == 0);
    mc_file_close(open_file(store, "small.txt"));
    mc_file_close(file);
    mc_store_close(store);
    free(expected);
}

/* -- GGUF ---------------------------------------------------------------------------------------------------------------- */

static void gguf(void) {
    mc_store *store = open_store();
    mc_file *whole = open_file(store, "whole.gguf"), *part = open_file(store, "part.gguf"), *other = open_file(store, "large.bin");
    mc_error *error;
    FILE *stream = mc_file_fopen_gguf(whole, &error);
    CHECK(stream != NULL && error == NULL);
    char magic[4];
    CHECK(fread(magic, 4, 1, stream) == 1 && memcmp(magic, "GGUF", 4) == 0);
    CHECK(fclose(stream) == 0);

    CHECK(mc_file_fopen_gguf(part, &error) == NULL && mc_error_code(error) == MC_USAGE);
    const char *text = mc_error_text(error);
    CHECK(strncmp(text, "part.gguf of org/local is part 1 of 2 of a split GGUF", 53) == 0);
    CHECK(strstr(text, "\nhint: ") != NULL && strstr(text, "model-cache mount ") != NULL);
    CHECK(strstr(text, "model-cache export org/local --to ") != NULL);
    mc_error_free(error);
    /* Any code may still read it as a stream. */
    stream = mc_file_fopen(part);
    CHECK(stream != NULL && fread(magic, 4, 1, stream) == 1 && memcmp(magic, "GGUF", 4) == 0 && fclose(stream) == 0);

    CHECK(mc_file_fopen_gguf(other, &error) == NULL && mc_error_code(error) == MC_INTEGRITY);
    CHECK(strstr(mc_error_text(error), "not with GGUF") != NULL);
    mc_error_free(error);
    mc_file_close(other);
    mc_file_close(part);
    mc_file_close(whole);
    mc_store_close(store);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*check)(void);
    } checks[] = {
        {"pointer", pointer}, {"read_at", read_at},     {"stream", stream},   {"errors", errors}, {"nulls", nulls},
        {"gguf", gguf},       {"lifetimes", lifetimes}, {"threads", threads}, {"forked", forked},
    };
    if (argc == 4) {
        store_path = argv[2];
        source_path = argv[3];
        for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
            if (strcmp(checks[i].name, argv[1]) == 0) {
                checks[i].check();
                return 0;
            }
        }
    }
    fputs("usage: checks CHECK STORE SOURCE\n", stderr);
    return 2;
}
