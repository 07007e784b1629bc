/* Makes the n-th write-like operation of a process below given folders fail, for LD_PRELOAD.

   Interposes the calls of the C library, so that Rust, C++ and Python fail alike. `faults_arm`
   chooses what fails; `faults_count` and `faults_last` say what happened. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long chosen, counted;
static int number, stays, removals;
static char last[PATH_MAX + 64];

/* chosen_: 1 is the next operation, 0 none. number_: of the error;
   -1 kills the process before it. stays_: whether all later
   operations fail too. removals_: 1 if removing fails from then on, as on a
   read-only disk; 2 if it counts as an operation. */
void faults_arm(const char *folder_, long chosen_, int number_, int stays_, int removals_) {
  snprintf(folder, sizeof folder, "%s", folder_);
  chosen = chosen_, number = number_, stays = stays_, removals = removals_;
  last[0] = 0;
  __atomic_store_n(&counted, 0, __ATOMIC_SEQ_CST);
}

long faults_count(void) { return __atomic_load_n(&counted, __ATOMIC_SEQ_CST); }
const char *faults_last(void) { return last; }

static int is_below(const char *path) {
  size_t length = strlen(folder);
  return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int absolute(int at, const char *path, char *whole) {
  char base[PATH_MAX];
  if (path && path[0] == '/') return snprintf(whole, PATH_MAX, "%s", path) < PATH_MAX;
  if (at == AT_FDCWD) {
    if (!getcwd(base, sizeof base)) return 0;
  } else {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0) return 0;
    base[length] = 0;
  }
  return snprintf(whole, PATH_MAX, path ? "%s/%s" : "%s", base, path) < PATH_MAX;
}

static int fails(const char *operation, int at, const char *path) {
  char whole[PATH_MAX];
  int before = errno;
  if (!folder[0] || !absolute(at, path, whole) || !is_below(whole)) return errno = before, 0;
  long place = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
  if (place == chosen && number < 0) kill(getpid(), SIGKILL);
  if (place == chosen) snprintf(last, sizeof last, "%s %s", operation, whole);
  if (chosen && (place == chosen || (stays && place > chosen))) return errno = number, 1;
  return errno = before, 0;
}

static int removal_fails(int at, const char *path) {
  if (removals == 2) return fails("remove", at, path);
  char whole[PATH_MAX];
  int before = errno;
  int refused = removals && chosen && faults_count() >= chosen && absolute(at, path, whole) &&
                is_below(whole);
  errno = refused ? number : before;
  return refused;
}

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT); }

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list more; \
    va_start(more, flags); \
    mode_t mode = va_arg(more, mode_t); \
    va_end(more); \
    return writes(flags) && fails("open", AT_FDCWD, path) ? -1 : real(path, flags, mode); \
  }
#define OPENAT(name) \
  int name(int at, const char *path, int flags, ...) { \
    REAL(name); \
    va_list more; \
    va_start(more, flags); \
    mode_t mode = va_arg(more, mode_t); \
    va_end(more); \
    return writes(flags) && fails("open", at, path) ? -1 : real(at, path, flags, mode); \
  }
#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    REAL(name); \
    return strpbrk(mode, "wa+") && fails("fopen", AT_FDCWD, path) ? NULL : real(path, mode); \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int file, const void *data, size_t size) {
  REAL(write);
  return file > 2 && fails("write", file, NULL) ? -1 : real(file, data, size);
}
ssize_t writev(int file, const struct iovec *data, int count) {
  REAL(writev);
  return file > 2 && fails("writev", file, NULL) ? -1 : real(file, data, count);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
  REAL(pwrite);
  return fails("pwrite", file, NULL) ? -1 : real(file, data, size, at);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
  REAL(pwrite64);
  return fails("pwrite", file, NULL) ? -1 : real(file, data, size, at);
}
ssize_t sendfile(int out, int in, off_t *at, size_t size) {
  ssize_t (*real)(int, int, off_t *, size_t) = dlsym(RTLD_NEXT, "sendfile");
  return fails("sendfile", out, NULL) ? -1 : real(out, in, at, size);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) {
  ssize_t (*real)(int, int, off64_t *, size_t) = dlsym(RTLD_NEXT, "sendfile64");
  return fails("sendfile", out, NULL) ? -1 : real(out, in, at, size);
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
  REAL(copy_file_range);
  return fails("copy", out, NULL) ? -1 : real(in, from, out, to, size, flags);
}
int fsync(int file) {
  REAL(fsync);
  return fails("fsync", file, NULL) ? -1 : real(file);
}
int fdatasync(int file) {
  REAL(fdatasync);
  return fails("fsync", file, NULL) ? -1 : real(file);
}
int ftruncate(int file, off_t size) {
  REAL(ftruncate);
  return fails("truncate", file, NULL) ? -1 : real(file, size);
}
int ftruncate64(int file, off64_t size) {
  REAL(ftruncate64);
  return fails("truncate", file, NULL) ? -1 : real(file, size);
}
int posix_fallocate(int file, off_t at, off_t size) {
  REAL(posix_fallocate);
  return fails("allocate", file, NULL) ? number : real(file, at, size);
}
int posix_fallocate64(int file, off64_t at, off64_t size) {
  REAL(posix_fallocate64);
  return fails("allocate", file, NULL) ? number : real(file, at, size);
}
int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  return fails("mkdir", AT_FDCWD, path) ? -1 : real(path, mode);
}
int mkdirat(int at, const char *path, mode_t mode) {
  REAL(mkdirat);
  return fails("mkdir", at, path) ? -1 : real(at, path, mode);
}
int rename(const char *from, const char *to) {
  REAL(rename);
  return fails("rename", AT_FDCWD, to) ? -1 : real(from, to);
}
int renameat(int at, const char *from, int to_at, const char *to) {
  REAL(renameat);
  return fails("rename", to_at, to) ? -1 : real(at, from, to_at, to);
}
int link(const char *from, const char *to) {
  REAL(link);
  return fails("link", AT_FDCWD, to) ? -1 : real(from, to);
}
int linkat(int at, const char *from, int to_at, const char *to, int flags) {
  REAL(linkat);
  return fails("link", to_at, to) ? -1 : real(at, from, to_at, to, flags);
}
int symlink(const char *from, const char *to) {
  REAL(symlink);
  return fails("link", AT_FDCWD, to) ? -1 : real(from, to);
}
int unlink(const char *path) {
  REAL(unlink);
  return removal_fails(AT_FDCWD, path) ? -1 : real(path);
}
int unlinkat(int at, const char *path, int flags) {
  REAL(unlinkat);
  return removal_fails(at, path) ? -1 : real(at, path, flags);
}
int rmdir(const char *path) {
  REAL(rmdir);
  return removal_fails(AT_FDCWD, path) ? -1 : real(path);
}
