/* A disk that can be watched and made to fail, preloaded into a process: everything it does to files below
 * SHIM_DIR passes through here. Which of these are set says what happens:
 *
 *   SHIM_LOG    every write, truncation, sync, rename and removal is appended to this file, in order, in the
 *               format that disk.rs reads
 *   SHIM_EIO    the nth sync from now on fails with EIO, once; what it should have made durable stays in the
 *               page cache, marked clean, as Linux does
 *   SHIM_ROOM   while this file exists it holds the number of bytes by which files may still grow; then ENOSPC
 *   SHIM_FAULTS a directory of switches, each a file that may come and go while the process runs:
 *               eio    the next sync fails with EIO, and takes the file away
 *               delay  every sync takes so many milliseconds longer
 *               block  every sync waits until the file is gone; meanwhile there is a file `blocked`
 *               clock  by how many seconds the wall clock is wrong
 *
 * A file keeps the name under which it was opened. One process, few files, no forks. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define FILES 4096
static char *names[FILES];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static long syncs;

#define REAL(result, name, ...) \
    static result (*real_##name)(__VA_ARGS__); \
    if (!real_##name) real_##name = dlsym(RTLD_NEXT, #name)

/* The part of a path below SHIM_DIR, "" for the directory itself; NULL elsewhere. */
static const char *below(const char *path) {
    const char *dir = getenv("SHIM_DIR");
    size_t length = dir ? strlen(dir) : 0;
    if (!length || !path || strncmp(path, dir, length)) return NULL;
    if (!path[length]) return path + length;
    return path[length] == '/' ? path + length + 1 : NULL;
}

static const char *name_of(int fd) {
    return fd >= 0 && fd < FILES ? names[fd] : NULL;
}

/* The number in a switch of SHIM_FAULTS, 0 if it holds none; -1 when there is no such switch. `path` becomes
 * its name. */
static long fault(const char *name, char path[static 512]) {
    REAL(int, open64, const char *, int, ...);
    REAL(int, close, int);
    const char *dir = getenv("SHIM_FAULTS");
    if (!dir || snprintf(path, 512, "%s/%s", dir, name) >= 512) return -1;
    int fd = real_open64(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    char text[32] = {0};
    if (read(fd, text, sizeof text - 1) < 0) abort();
    real_close(fd);
    return atol(text);
}

/* What a sync goes through before it is done; whether it fails. */
static int hinder_sync(void) {
    REAL(int, open64, const char *, int, ...);
    REAL(int, close, int);
    REAL(int, unlink, const char *);
    char path[512], blocked[512];
    long delay = fault("delay", path);
    if (delay > 0) usleep(delay * 1000);
    if (fault("block", path) >= 0) {
        fault("blocked", blocked);
        int fd = real_open64(blocked, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd >= 0) real_close(fd);
        while (fault("block", path) >= 0) usleep(1000);
        real_unlink(blocked);
    }
    return fault("eio", path) >= 0 && !real_unlink(path);
}

/* op u8, name length u16, name, two u64, data */
static void record(char op, const char *name, uint64_t one, uint64_t two, const void *data, size_t length) {
    REAL(ssize_t, write, int, const void *, size_t);
    const char *path = getenv("SHIM_LOG");
    if (!path) return;
    pthread_mutex_lock(&mutex);
    if (log_fd < 0) {
        REAL(int, open64, const char *, int, ...);
        log_fd = real_open64(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    }
    uint16_t name_length = strlen(name);
    size_t total = 1 + 2 + name_length + 16 + length;
    char *line = malloc(total), *at = line;
    *at++ = op;
    memcpy(at, &name_length, 2), at += 2;
    memcpy(at, name, name_length), at += name_length;
    memcpy(at, &one, 8), at += 8;
    memcpy(at, &two, 8), at += 8;
    if (length) memcpy(at, data, length);
    if (real_write(log_fd, line, total) != (ssize_t)total) abort();
    free(line);
    pthread_mutex_unlock(&mutex);
}

/* How much of a write may be done; 0 for none. */
static size_t room(int fd, size_t length, off_t offset) {
    REAL(ssize_t, write, int, const void *, size_t);
    REAL(int, open64, const char *, int, ...);
    const char *path = getenv("SHIM_ROOM");
    struct stat now;
    if (!path || fstat(fd, &now)) return length;
    if (offset + (off_t)length <= now.st_size) return length;
    int control = real_open64(path, O_RDWR | O_CLOEXEC);
    if (control < 0) return length;
    char text[32] = {0};
    if (read(control, text, sizeof text - 1) < 0) abort();
    long left = atol(text);
    size_t inside = offset < now.st_size ? now.st_size - offset : 0;
    size_t grows = length - inside;
    if ((long)grows > left) grows = left;
    int size = snprintf(text, sizeof text, "%ld\n", left - (long)grows);
    if (lseek(control, 0, SEEK_SET) || real_write(control, text, size) != size || ftruncate(control, size)) abort();
    close(control);
    return inside + grows;
}

static int opened(int fd, const char *path, int flags, int was_there) {
    const char *name = below(path);
    if (fd < 0 || fd >= FILES || !name) return fd;
    free(names[fd]);
    names[fd] = strdup(name);
    if ((flags & O_CREAT) && !was_there) record('C', name, 0, 0, NULL, 0);
    if ((flags & O_TRUNC) && was_there) record('T', name, 0, 0, NULL, 0);
    return fd;
}

#define OPEN(function) \
    int function(const char *path, int flags, ...) { \
        REAL(int, function, const char *, int, ...); \
        va_list arguments; \
        va_start(arguments, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0; \
        va_end(arguments); \
        int was_there = !access(path, F_OK); \
        return opened(real_##function(path, flags, mode), path, flags, was_there); \
    }
OPEN(open)
OPEN(open64)

int close(int fd) {
    REAL(int, close, int);
    if (name_of(fd)) {
        free(names[fd]);
        names[fd] = NULL;
    }
    return real_close(fd);
}

ssize_t write(int fd, const void *data, size_t length) {
    REAL(ssize_t, write, int, const void *, size_t);
    const char *name = name_of(fd);
    if (!name) return real_write(fd, data, length);
    off_t offset = lseek(fd, 0, SEEK_CUR);
    int flags = fcntl(fd, F_GETFL);
    if (flags & O_APPEND) offset = lseek(fd, 0, SEEK_END);
    size_t fits = room(fd, length, offset);
    if (!fits && length) return errno = ENOSPC, -1;
    ssize_t written = real_write(fd, data, fits);
    if (written > 0) record('W', name, offset, written, data, written);
    return written;
}

#define PWRITE(function, offset_type) \
    ssize_t function(int fd, const void *data, size_t length, offset_type offset) { \
        REAL(ssize_t, function, int, const void *, size_t, offset_type); \
        const char *name = name_of(fd); \
        if (!name) return real_##function(fd, data, length, offset); \
        size_t fits = room(fd, length, offset); \
        if (!fits && length) return errno = ENOSPC, -1; \
        ssize_t written = real_##function(fd, data, fits, offset); \
        if (written > 0) record('W', name, offset, written, data, written); \
        return written; \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define TRUNCATE(function, offset_type) \
    int function(int fd, offset_type length) { \
        REAL(int, function, int, offset_type); \
        int result = real_##function(fd, length); \
        if (!result && name_of(fd)) record('T', name_of(fd), length, 0, NULL, 0); \
        return result; \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define SYNC(function) \
    int function(int fd) { \
        REAL(int, function, int); \
        const char *name = name_of(fd), *failing = getenv("SHIM_EIO"); \
        if (name && failing && ++syncs == atol(failing)) return errno = EIO, -1; \
        if (name && hinder_sync()) return errno = EIO, -1; \
        int result = real_##function(fd); \
        if (!result && name) record('S', name, 0, 0, NULL, 0); \
        return result; \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    int result = real_rename(from, to);
    const char *old = below(from), *new = below(to);
    if (!result && old && new) record('R', old, strlen(new), 0, new, strlen(new));
    return result;
}

int unlink(const char *path) {
    REAL(int, unlink, const char *);
    int result = real_unlink(path);
    if (!result && below(path)) record('U', below(path), 0, 0, NULL, 0);
    return result;
}

static time_t wrong_by(void) {
    char path[512];
    REAL(int, access, const char *, int);
    const char *dir = getenv("SHIM_FAULTS");
    if (!dir || snprintf(path, sizeof path, "%s/clock", dir) >= (int)sizeof path || real_access(path, F_OK)) return 0;
    return fault("clock", path);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int result = real_clock_gettime(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += wrong_by();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(int, gettimeofday, struct timeval *, void *);
    int result = real_gettimeofday(now, zone);
    if (!result) now->tv_sec += wrong_by();
    return result;
}

time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
