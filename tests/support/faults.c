/* File functions and clocks that fail on demand, for LD_PRELOAD (tests/chaos.py).

   What fails is written into a page of memory that the tester and all processes of a run share, so
   that a fault can begin and end at any moment. It is that of one folder. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITES = 1, READS = 2, CLOCK = 4 };

struct control {
    volatile int64_t what;       /* WRITES, READS, CLOCK */
    volatile int64_t error;      /* errno of reads or writes; 0: they are slow */
    volatile int64_t left;       /* bytes that still pass before the first error */
    volatile int64_t delay;      /* microseconds that each call takes */
    volatile int64_t seconds;    /* that the clock of the day is ahead */
    volatile int64_t hits;       /* calls that were hurt */
    char prefix[1024];
};

static struct control *page(void) {
    static struct control *shared;
    if (!shared) {
        const char *path = getenv("CHAOS_CONTROL");
        int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
        int descriptor = path ? real_open(path, O_RDWR | O_CLOEXEC) : -1;
        void *found = descriptor < 0 ? MAP_FAILED : mmap(
            NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        static struct control none;
        if (descriptor >= 0) close(descriptor);
        shared = found == MAP_FAILED ? &none : found;
    }
    return shared;
}

static int chosen(const char *path) {
    const char *prefix = page()->prefix;
    size_t length = strlen(prefix);
    return length && path && !strncmp(path, prefix, length)
        && (path[length] == '/' || !path[length]);
}

static int chosen_file(int descriptor) {
    char link[64], path[1024];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return chosen(path);
}

/* How many of the wanted bytes pass; -1 with errno for none. */
static ssize_t hurt(int64_t kind, int descriptor, size_t wanted) {
    struct control *c = page();
    if (!(c->what & kind) || !chosen_file(descriptor)) return wanted;
    int kept = errno;
    if (c->delay) {
        __sync_fetch_and_add(&c->hits, 1);
        usleep(c->delay);
        errno = kept;
    }
    if (!c->error) return wanted;
    int64_t before = __sync_fetch_and_sub(&c->left, (int64_t)wanted);
    if (before >= (int64_t)wanted) return wanted;
    __sync_fetch_and_add(&c->hits, 1);
    if (before > 0 && wanted) return before;
    errno = c->error;
    return -1;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t count) {
    REAL(ssize_t, "write", int, const void *, size_t);
    ssize_t fine = hurt(WRITES, fd, count);
    return fine < 0 ? -1 : real(fd, data, fine);
}

ssize_t pwrite64(int fd, const void *data, size_t count, off64_t offset) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    ssize_t fine = hurt(WRITES, fd, count);
    return fine < 0 ? -1 : real(fd, data, fine, offset);
}

ssize_t read(int fd, void *data, size_t count) {
    REAL(ssize_t, "read", int, void *, size_t);
    ssize_t fine = hurt(READS, fd, count);
    return fine < 0 ? -1 : real(fd, data, fine);
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    struct control *c = page();
    if ((c->what & WRITES) && c->error && c->left <= 0 && chosen_file(fd)) {
        errno = c->error;
        return -1;
    }
    return real(fd);
}

/* A full or failing disk has no room for new names either. */
static int no_new_name(const char *path) {
    struct control *c = page();
    if (!(c->what & WRITES) || !c->error || c->left > 0 || !chosen(path)) return 0;
    __sync_fetch_and_add(&c->hits, 1);
    errno = c->error;
    return 1;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        mode_t mode = 0; \
        if (flags & O_CREAT) { \
            va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); \
            if (access(path, F_OK) && no_new_name(path)) return -1; \
        } \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return no_new_name(path) ? -1 : real(path, mode);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME && (page()->what & CLOCK)) now->tv_sec += page()->seconds;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(int, "gettimeofday", struct timeval *restrict, void *restrict);
    int result = real(now, zone);
    if (page()->what & CLOCK) now->tv_sec += page()->seconds;
    return result;
}

time_t time(time_t *result) {
    REAL(time_t, "time", time_t *);
    time_t now = real(NULL) + (page()->what & CLOCK ? page()->seconds : 0);
    if (result) *result = now;
    return now;
}
