/*
 * A file of Model Cache as a FILE *, for code that reads one. It has no descriptor (fileno fails), so it can't be mapped; what is
 * read is copied, once. Positions are 64 bits wide.
 *
 * Everything here is static inline over model_cache.h and the C library's own custom streams: fopencookie of glibc and musl,
 * which needs _GNU_SOURCE defined before the first #include (g++ and clang++ do that by themselves), and funopen of macOS and BSD.
 *
 *     FILE *stream = mc_file_fopen_gguf(file, &error);
 *     params.load_mode = LLAMA_LOAD_MODE_NONE;                 // the default maps, which this can't
 *     struct llama_model *model = llama_model_load_from_file_ptr(stream, params);
 *     fclose(stream);                                          // the model has copied all it needs
 */
#ifndef MODEL_CACHE_STDIO_H
#define MODEL_CACHE_STDIO_H

#include "model_cache.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

#if defined(__linux__) && !defined(_GNU_SOURCE)
#error "model_cache_stdio.h needs _GNU_SOURCE, defined before the first #include, for fopencookie"
#elif !defined(__linux__) && !defined(__APPLE__) && !defined(__FreeBSD__) && !defined(__NetBSD__) && !defined(__OpenBSD__)
#error "model_cache_stdio.h knows no custom streams of this system; read with mc_file_data or mc_file_read_at"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What a stream is made of: a file of its own, and a position. */
struct mc_stream {
    mc_file *file;
    uint64_t position;
};

/* Reads on from the position, up to the end. */
static inline size_t mc_stream_read_(struct mc_stream *stream, char *buffer, size_t buffer_bytes) {
    const uint64_t size = mc_file_size_bytes(stream->file);
    const uint64_t rest = stream->position < size ? size - stream->position : 0;
    const size_t count = rest < buffer_bytes ? (size_t)rest : buffer_bytes;
    /* It lies in the file, so it can't fail. */
    if (mc_file_read_at(stream->file, stream->position, buffer, count, NULL) != MC_OK) return 0;
    stream->position += count;
    return count;
}

/* Moves the position, also past the end, where nothing is read; not to before the start, nor further than a file can reach. */
static inline int64_t mc_stream_seek_(struct mc_stream *stream, int64_t offset, int whence) {
    uint64_t from;
    switch (whence) {
        case SEEK_SET: from = 0; break;
        case SEEK_CUR: from = stream->position; break;
        case SEEK_END: from = mc_file_size_bytes(stream->file); break;
        default: errno = EINVAL; return -1;
    }
    if (offset < 0 ? (uint64_t)-(offset + 1) + 1 > from : (uint64_t)offset > (uint64_t)INT64_MAX - from) {
        errno = EINVAL;
        return -1;
    }
    stream->position = from + (uint64_t)offset;
    return (int64_t)stream->position;
}

static inline int mc_stream_close_(void *cookie) {
    struct mc_stream *stream = (struct mc_stream *)cookie;
    mc_file_close(stream->file);
    free(stream);
    return 0;
}

#ifdef __linux__
static inline ssize_t mc_cookie_read_(void *cookie, char *buffer, size_t buffer_bytes) {
    return (ssize_t)mc_stream_read_((struct mc_stream *)cookie, buffer, buffer_bytes);
}

#ifdef __GLIBC__
typedef off64_t mc_cookie_offset_;
#else
typedef off_t mc_cookie_offset_;
#endif

static inline int mc_cookie_seek_(void *cookie, mc_cookie_offset_ *offset, int whence) {
    const int64_t position = mc_stream_seek_((struct mc_stream *)cookie, *offset, whence);
    if (position < 0) return -1;
    *offset = position;
    return 0;
}
#else
static inline int mc_cookie_read_(void *cookie, char *buffer, int buffer_bytes) {
    return (int)mc_stream_read_((struct mc_stream *)cookie, buffer, (size_t)buffer_bytes);
}

static inline fpos_t mc_cookie_seek_(void *cookie, fpos_t offset, int whence) {
    return mc_stream_seek_((struct mc_stream *)cookie, offset, whence);
}
#endif

/*
 * `file` as a stream to read and to seek in, at its start; to be closed with fclose. It keeps a clone of its own, so that `file`
 * may be closed at once. NULL where no memory is left (errno ENOMEM) and for NULL (EINVAL).
 *
 * As every FILE it has one position, and locks itself for each call.
 */
static inline FILE *mc_file_fopen(const mc_file *file) {
    if (file == NULL) {
        errno = EINVAL;
        return NULL;
    }
    struct mc_stream *stream = (struct mc_stream *)malloc(sizeof *stream);
    if (stream == NULL) return NULL;
    stream->file = mc_file_clone(file);
    stream->position = 0;
    FILE *opened = NULL;
    if (stream->file != NULL) {
#ifdef __linux__
        cookie_io_functions_t functions;
        functions.read = mc_cookie_read_;
        functions.write = NULL;
        functions.seek = mc_cookie_seek_;
        functions.close = mc_stream_close_;
        opened = fopencookie(stream, "rb", functions);
#else
        opened = funopen(stream, mc_cookie_read_, NULL, mc_cookie_seek_, mc_stream_close_);
#endif
    }
    if (opened == NULL) mc_stream_close_(stream);
    return opened;
}

/*
 * As mc_file_fopen, for a loader that takes what it reads for a whole GGUF (llama_model_load_from_file_ptr). NULL, with `error`
 * set, for what mc_file_check_gguf refuses; NULL without one where no memory is left.
 */
static inline FILE *mc_file_fopen_gguf(const mc_file *file, mc_error **error) {
    return mc_file_check_gguf(file, error) == MC_OK ? mc_file_fopen(file) : NULL;
}

#ifdef __cplusplus
}
#endif
#endif
