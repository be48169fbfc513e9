/* Stands between the gateway and the C library, for the files of one directory. Made by shim.rs, loaded by LD_PRELOAD.
 *
 * It writes a journal of what is done to the files and of what was synced, with the bytes that were there before each
 * write, so that a crash can be played that loses what was not synced; and it lets syncs fail while a file says so.
 *
 *   FAULTS_DIR       the directory, as the gateway names it
 *   FAULTS_JOURNAL   begun anew by each process
 *   FAULTS_CONTROL   a directory on the same file system: while `fail-sync` is there syncs fail; removed files are kept
 *                    there under the names `grave-<number>`
 *   FAULTS_UNSYNCED  set: syncs do nothing and say that they did
 *
 * What the gateway does by raw system calls (fallocate) is not seen; the size of a file is noted when it is synced.
 */
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
#include <unistd.h>

#define FDS 65536

struct head {
    uint8_t type; /* W write, S synced, F sync failed, D directory synced, C created, U unlinked, R renamed */
    uint64_t file, first, second;
    uint32_t bytes; /* that follow */
} __attribute__((packed));

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static const char *dir, *control;
static int journal = -1, unsynced;
static unsigned graves;
static uint64_t watched[FDS]; /* by descriptor, the inode of a file of the directory, or 0 */

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static int (*real_fsync)(int), (*real_fdatasync)(int);

__attribute__((constructor)) static void begin(void) {
    real_write = REAL(write);
    real_pwrite = REAL(pwrite64);
    real_fsync = REAL(fsync);
    real_fdatasync = REAL(fdatasync);
    dir = getenv("FAULTS_DIR");
    control = getenv("FAULTS_CONTROL");
    unsynced = getenv("FAULTS_UNSYNCED") != NULL;
    const char *path = getenv("FAULTS_JOURNAL");
    if (path != NULL)
        journal = REAL(open64)(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
}

static void note(uint8_t type, uint64_t file, uint64_t first, uint64_t second, const void *bytes, size_t count) {
    int before = errno;
    if (journal >= 0) {
        struct head head = {type, file, first, second, (uint32_t)count};
        char *whole = malloc(sizeof head + count);
        memcpy(whole, &head, sizeof head);
        memcpy(whole + sizeof head, bytes, count);
        /* One write: a kill leaves a record whole or not there, as far as the kernel takes it in one piece. */
        if (real_write(journal, whole, sizeof head + count) < 0)
            abort();
        free(whole);
    }
    errno = before;
}

/* The name of a file in the directory, or NULL. */
static const char *name_of(const char *path) {
    size_t length = dir == NULL ? 0 : strlen(dir);
    if (length == 0 || strncmp(path, dir, length) != 0 || path[length] != '/')
        return NULL;
    const char *name = path + length + 1;
    return *name == 0 || strchr(name, '/') != NULL ? NULL : name;
}

static uint64_t inode(int fd) {
    struct stat64 about;
    return fstat64(fd, &about) == 0 ? about.st_ino : 0;
}

/* The inode if the descriptor is one of a watched file. */
static uint64_t watch(int fd) {
    if (fd < 0 || fd >= FDS || watched[fd] == 0)
        return 0;
    return watched[fd] == inode(fd) ? watched[fd] : 0;
}

static int opened(int fd, const char *path, int is_new) {
    const char *name = name_of(path);
    if (fd < 0 || fd >= FDS)
        return fd;
    watched[fd] = 0;
    /* The directory itself is opened to be synced. */
    if (name != NULL || (dir != NULL && strncmp(path, dir, strlen(dir)) == 0 && strlen(path) <= strlen(dir) + 1))
        watched[fd] = inode(fd);
    if (name != NULL && is_new)
        note('C', watched[fd], 0, 0, name, strlen(name));
    return fd;
}

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                        \
        va_end(rest);                                                                                                  \
        if (name_of(path) == NULL)                                                                                     \
            return opened(REAL(name)(path, flags, mode), path, 0);                                                     \
        pthread_mutex_lock(&lock);                                                                                     \
        int is_new = (flags & O_CREAT) && access(path, F_OK) != 0;                                                     \
        int fd = opened(REAL(name)(path, flags, mode), path, is_new);                                                  \
        pthread_mutex_unlock(&lock);                                                                                   \
        return fd;                                                                                                     \
    }
OPEN(open)
OPEN(open64)

static ssize_t written(int fd, const void *bytes, size_t count, off64_t at, int moves) {
    uint64_t file = watch(fd);
    if (file == 0)
        return moves ? real_write(fd, bytes, count) : real_pwrite(fd, bytes, count, at);
    pthread_mutex_lock(&lock);
    char *old = malloc(count == 0 ? 1 : count);
    if (moves)
        at = lseek64(fd, 0, SEEK_CUR);
    ssize_t there = pread64(fd, old, count, at);
    ssize_t done = moves ? real_write(fd, bytes, count) : real_pwrite(fd, bytes, count, at);
    if (done > 0)
        note('W', file, (uint64_t)at, (uint64_t)done, old, there < 0 ? 0 : (there < done ? there : done));
    free(old);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t write(int fd, const void *bytes, size_t count) { return written(fd, bytes, count, 0, 1); }
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return written(fd, bytes, count, at, 0); }
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) { return written(fd, bytes, count, at, 0); }

static int must_fail(void) {
    char path[4096];
    if (control == NULL)
        return 0;
    snprintf(path, sizeof path, "%s/fail-sync", control);
    return access(path, F_OK) == 0;
}

static int synced(int fd, int (*real)(int)) {
    uint64_t file = watch(fd);
    if (file == 0)
        return real(fd);
    pthread_mutex_lock(&lock);
    struct stat64 about;
    fstat64(fd, &about);
    int done = 0;
    if (must_fail()) {
        note('F', file, 0, 0, "", 0);
        errno = EIO;
        done = -1;
    } else if (!unsynced) {
        done = real(fd);
        if (done == 0)
            note(S_ISDIR(about.st_mode) ? 'D' : 'S', file, (uint64_t)about.st_size, 0, "", 0);
    }
    pthread_mutex_unlock(&lock);
    return done;
}

int fsync(int fd) { return synced(fd, real_fsync); }
int fdatasync(int fd) { return synced(fd, real_fdatasync); }

int unlink(const char *path) {
    const char *name = name_of(path);
    if (name == NULL)
        return REAL(unlink)(path);
    pthread_mutex_lock(&lock);
    struct stat64 about = {0};
    char grave[4096];
    stat64(path, &about);
    snprintf(grave, sizeof grave, "%s/grave-%u", control, graves);
    int kept = control != NULL && journal >= 0 && link(path, grave) == 0;
    int done = REAL(unlink)(path);
    if (done == 0 && kept)
        note('U', about.st_ino, graves++, 0, name, strlen(name));
    pthread_mutex_unlock(&lock);
    return done;
}

int rename(const char *from, const char *to) {
    const char *one = name_of(from), *other = name_of(to);
    if (one == NULL || other == NULL)
        return REAL(rename)(from, to);
    pthread_mutex_lock(&lock);
    struct stat64 about = {0};
    stat64(from, &about);
    int done = REAL(rename)(from, to);
    if (done == 0) {
        char names[8192];
        int bytes = snprintf(names, sizeof names, "%s/%s", one, other);
        note('R', about.st_ino, 0, 0, names, (size_t)bytes);
    }
    pthread_mutex_unlock(&lock);
    return done;
}
