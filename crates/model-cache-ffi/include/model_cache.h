/*
 * Model Cache: read AI model files from a local store, without a copy. Link with -lmodel_cache.
 *
 *     mc_error *error;
 *     mc_store *store;
 *     mc_file *file;
 *     if (mc_store_open(NULL, &store, &error) != MC_OK) { fputs(mc_error_text(error), stderr); ... }
 *     if (mc_file_open(store, "org/name", "model.gguf", &file, &error) != MC_OK) ...
 *     const unsigned char *bytes = mc_file_data(file);        // all of it, mc_file_size_bytes(file) bytes
 *     ...
 *     mc_file_close(file);
 *     mc_store_close(store);
 *
 * Files come into a store by the program model-cache (pull, import); nothing here touches the network.
 * model_cache_stdio.h turns a file into a FILE *.
 *
 * Rules for all functions
 *
 * Errors    A function that can fail gives a code; MC_OK is 0. `error`, where it is not NULL, is set to an error to be read and
 *           freed, or to NULL if there is none: what it was before does not matter and is not freed. An error is an object of
 *           its own, not a text of the thread's: no later call changes it, and any thread may read it, also where a language's
 *           tasks wander between threads. Results (`*store`, `*file`) are set to NULL where a call fails.
 * NULL      A NULL where something is needed is MC_USAGE, naming it. Closing and freeing NULL does nothing. Functions that
 *           can't fail take NULL too, and say what they give then.
 * Texts     End in NUL. Repos and paths are UTF-8; so is all that is given back, which is never to be freed.
 * Threads   Any thread may use any handle, several at the same time. Close a handle, or free an error, when no other call uses
 *           it; as with free(), it is gone after.
 * Lifetime  A file outlives the store it was opened in: close them in any order. What its functions point to lives until it is
 *           closed.
 * fork()    A child may read files its parent had opened, and may close all it inherited. To open a file it needs a store it has
 *           opened itself: with its parent's it gets MC_OTHER. Until parent and child have both closed a file, or ended, its bytes
 *           are kept.
 * Panics    None crosses into C; a bug of ours is MC_OTHER and says so. (Where no memory is left, the process is aborted.)
 * Removal   A file that is removed, by whatever process, while it is open here stays readable as it was. Its space is freed when
 *           it is closed, which takes a few milliseconds then.
 * Disks     Bytes are read through a mapping. Where the disk can't deliver them, the process gets SIGBUS, as with mmap().
 */
#ifndef MODEL_CACHE_H
#define MODEL_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A store, open to be read. */
typedef struct mc_store mc_store;
/* A file of a store, open. */
typedef struct mc_file mc_file;
/* Why a call failed. */
typedef struct mc_error mc_error;

/* How a call ended: the exit codes of the program model-cache, which never change meaning. More may come. */
typedef int32_t mc_code;
enum {
    MC_OK = 0,
    MC_OTHER = 1,         /* everything without a code of its own */
    MC_USAGE = 2,         /* the request itself is wrong */
    MC_NOT_FOUND = 3,     /* no such store, repo, revision or file here */
    MC_NETWORK = 4,       /* the network or the Hub: not yet, nothing here uses them */
    MC_INTEGRITY = 5,     /* bytes or records that are not what they should be */
    MC_NO_SPACE = 6,      /* no room on the disk: a store needs a little to be opened */
    MC_NOT_ALLOWED = 7,   /* a token is missing or was refused: not yet, as above */
    MC_INTERRUPTED = 130, /* cancelled by the caller: not yet, nothing here takes long enough */
};

/* The version of the library, as "0.1.0". */
const char *mc_version(void);

/* The name of a code, as "not_found"; "unknown" for a number that is none. */
const char *mc_code_name(mc_code code);

/* -- errors ------------------------------------------------------------------------------------------------------------- */

/* The code of an error; MC_OK for NULL. */
mc_code mc_error_code(const mc_error *error);

/*
 * What went wrong, for people: on what, with which numbers, and its cause; then, where something is known to help, lines that
 * begin with "hint: ", each a sentence or a command. No newline at the end. "" for NULL. It lives until the error is freed.
 */
const char *mc_error_text(const mc_error *error);

/* Frees an error. */
void mc_error_free(mc_error *error);

/* -- stores ------------------------------------------------------------------------------------------------------------- */

/*
 * Opens the store in the folder `path`, or for NULL the default one: $MODEL_CACHE_HOME, else
 * $XDG_CACHE_HOME/tabagent/model-cache, else ~/.cache/tabagent/model-cache. A store that is not there is not made.
 *
 * It has to be writable, since readers write down that they read. Opening it twice in a process is cheap and harmless.
 * Cost: a few milliseconds; it may sweep up what a killed process left.
 * Fails with MC_NOT_FOUND (no store there), MC_OTHER (read-only, on a network file system, of another version, open in another
 * container), MC_NO_SPACE, MC_INTEGRITY.
 */
mc_code mc_store_open(const char *path, mc_store **store, mc_error **error);

/*
 * Whether `repo` has the file `path` here, complete and verified. `repo` is "org/name" or "org/name@revision": a branch, a tag,
 * a commit or refs/pr/n; without one it is main, or the import of that name. `path` is that within the repo.
 *
 * Cost: microseconds. Fails with MC_USAGE for names that can't be; `*found` is false then.
 */
mc_code mc_store_has_file(const mc_store *store, const char *repo, const char *path, bool *found, mc_error **error);

/* Closes a store. Files opened in it stay open. */
void mc_store_close(mc_store *store);

/* -- files -------------------------------------------------------------------------------------------------------------- */

/*
 * Opens a file; names are those of mc_store_has_file.
 *
 * Cost: well under a millisecond, whatever its size; nothing is read and no memory of its size is taken.
 * Fails with MC_USAGE, MC_NOT_FOUND (the text says how much of it is here and what brings the rest), MC_INTEGRITY.
 */
mc_code mc_file_open(const mc_store *store, const char *repo, const char *path, mc_file **file, mc_error **error);

/* The same file once more, to be closed by itself: pointers got from either live until both are closed. NULL for NULL. Cheap. */
mc_file *mc_file_clone(const mc_file *file);

/*
 * All bytes of a file, contiguous and read-only; mc_file_size_bytes of them. Writing there is a crash. On a boundary of at least
 * 64 bytes, so that alignments within the file hold in memory. NULL for NULL alone: an empty file has a pointer to nothing.
 *
 * Cost: none on Linux, where the chunks are mapped side by side; pages come from the page cache as they are touched, and are
 * shared by all processes. Elsewhere the first call copies the file into memory, so that mc_file_read_at is better there.
 */
const uint8_t *mc_file_data(const mc_file *file);

/* The size of a file in bytes; 0 for NULL. */
uint64_t mc_file_size_bytes(const mc_file *file);

/* The digest of a file, "sha256:<64 hex>" or "git-sha1:<40 hex>", checked before it became visible. "" for NULL. */
const char *mc_file_digest(const mc_file *file);

/*
 * Copies the `buffer_bytes` bytes from `offset_bytes` on into `buffer`: all of them, or none where they do not all lie in the file.
 * Has no position; one file may be read by many threads at once. `buffer` may be NULL for 0 bytes.
 *
 * Cost: the copy. Fails with MC_USAGE for a range past the end.
 */
mc_code mc_file_read_at(const mc_file *file, uint64_t offset_bytes, void *buffer, size_t buffer_bytes, mc_error **error);

/*
 * Reads a file into memory, several pieces at once, and into this process's page tables: reading mc_file_data then neither waits
 * for the disk nor takes a page fault. The memory is the page cache's, shared by all processes, and given up under pressure. Of a file
 * larger than the memory available the end is left to be read as it is touched.
 *
 * Cost: one read of what is not in memory, at the disk's speed. Fails where the disk can't deliver, with MC_OTHER.
 */
mc_code mc_file_prefetch(const mc_file *file, mc_error **error);

/*
 * Checks that a file is a GGUF with its whole model in it, as a loader needs that reads from a stream (llama.cpp's
 * llama_model_load_from_file_ptr). It takes one part of a split GGUF for the whole, and fails with words that do not tell why.
 *
 * Cost: reads the metadata: microseconds, a few milliseconds for a large vocabulary. Fails with MC_USAGE for a part of a split
 * GGUF, saying how to load it by path (model-cache mount, model-cache export), and with MC_INTEGRITY for what is no GGUF.
 */
mc_code mc_file_check_gguf(const mc_file *file, mc_error **error);

/* Closes a file. The pointers its functions gave are dead then, unless a clone is open. */
void mc_file_close(mc_file *file);

#ifdef __cplusplus
}
#endif
#endif
