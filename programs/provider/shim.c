/* The shim of a process worker: starts the command once, outlives its launcher, records how it ended.
 *
 *   shim FOLDER        FOLDER/handover says what to start; standard output gets one line for the caller
 *
 * What it leaves in FOLDER: worker.json (identity, written exclusively before the command starts), output.log, and
 * exit.json (how it ended, by rename). SIGTERM asks it to stop the worker (grace, then SIGKILL), SIGQUIT to stop it
 * at once. On Linux it is the reaper of all descendants (PR_SET_CHILD_SUBREAPER), so that none outlives the worker,
 * whatever session or group it moved to; a shim among them belongs to another run and is left alone.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#else
#include <sys/sysctl.h>
#endif

#define MAGIC "run-launcher-handover-1"
#define EXIT_ROOM 1024   /* bytes reserved for exit.json before the command starts, so that a full disk cannot lose it */
#define AFTERLIFE_MS 1000 /* what descendants get between SIGTERM and SIGKILL once the worker itself has ended */

enum phase { STARTING, RUNNING, ENDED };

struct handover {
    const char *cwd, *meta;
    long long grace, start_timeout, max_runtime; /* milliseconds; max_runtime 0 = none */
    long long memory, cpu_time, open_files;      /* bytes, seconds, descriptors; 0 = the caller's */
    char **argv, **env;
};

struct life {
    enum phase phase;
    pid_t worker;
    int failure, exit_record; /* the pipe that tells a failed exec; the reserved exit.json */
    int status, stopping, error;
    const char *reason, *stage;
    long long begun, kill_at; /* monotonic milliseconds */
};

static volatile sig_atomic_t stop_asked, kill_asked;
static int folder_fd = -1, status_fd = -1;
static char exit_part[64];
static sigset_t original_mask;
static mode_t original_umask;

static void on_signal(int number)
{
    if (number == SIGTERM) stop_asked = 1;
    if (number == SIGQUIT) kill_asked = 1;
}

static long long now_ms(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void tell(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vdprintf(status_fd, format, list);
    va_end(list);
}

static void fail(const char *stage)
{
    int error = errno;
    if (exit_part[0]) unlinkat(folder_fd, exit_part, 0);
    tell("error %s %d\n", stage, error);
    _exit(1);
}

/* ---- the handover: NUL-terminated words in a fixed order ---- */

static char *cursor, *limit;

static char *word(void)
{
    char *start = cursor;
    char *end = memchr(start, 0, (size_t)(limit - start));
    if (end == NULL) {
        errno = EINVAL;
        fail("handover");
    }
    cursor = end + 1;
    return start;
}

static long long number(void)
{
    return atoll(word());
}

static char **list(void)
{
    long long count = number();
    if (count < 0 || count > limit - cursor) {
        errno = EINVAL;
        fail("handover");
    }
    char **words = calloc((size_t)count + 1, sizeof *words);
    if (words == NULL) fail("handover");
    for (long long index = 0; index < count; index++) words[index] = word();
    return words;
}

static struct handover read_handover(void)
{
    struct handover what;
    struct stat info;
    int fd = openat(folder_fd, "handover", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info) < 0) fail("handover");
    if (info.st_uid != geteuid() || (info.st_mode & 077)) {
        errno = EPERM;
        fail("handover");
    }
    cursor = malloc((size_t)info.st_size + 1);
    if (cursor == NULL) fail("handover");
    limit = cursor;
    for (ssize_t got; (got = read(fd, limit, (size_t)(cursor + info.st_size - limit))) > 0;) limit += got;
    close(fd);
    if (strcmp(word(), MAGIC) != 0) {
        errno = EINVAL;
        fail("handover");
    }
    what.meta = word();
    what.cwd = word();
    what.grace = number();
    what.start_timeout = number();
    what.max_runtime = number();
    what.memory = number();
    what.cpu_time = number();
    what.open_files = number();
    what.argv = list();
    what.env = list();
    return what;
}

/* ---- identity: what proves that a pid is still the process that was started ---- */

/* Linux: clock ticks since boot (field 22 of /proc/PID/stat); elsewhere microseconds since the epoch. */
static long long start_time(pid_t pid)
{
#ifdef __linux__
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (got <= 0) return -1;
    text[got] = 0;
    char *field = strrchr(text, ')'); /* the name may hold blanks and brackets */
    for (int index = 2; field != NULL && index < 22; index++) field = strchr(field + 1, ' ');
    return field == NULL ? -1 : atoll(field + 1);
#else
    struct kinfo_proc info;
    size_t size = sizeof info;
    int name[4] = {CTL_KERN, KERN_PROC, KERN_PROC_PID, pid};
    if (sysctl(name, 4, &info, &size, NULL, 0) < 0 || size == 0) return -1;
    return (long long)info.kp_proc.p_starttime.tv_sec * 1000000 + info.kp_proc.p_starttime.tv_usec;
#endif
}

static void boot_id(char *text, size_t size)
{
#ifdef __linux__
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? 0 : read(fd, text, size - 1);
    if (fd >= 0) close(fd);
    text[got > 0 ? got : 0] = 0;
    text[strcspn(text, "\n")] = 0;
#else
    text[0] = 0;
    sysctlbyname("kern.bootsessionuuid", text, &size, NULL, 0);
#endif
}

static unsigned long long pid_namespace(void)
{
    struct stat info;
    return stat("/proc/self/ns/pid", &info) == 0 ? (unsigned long long)info.st_ino : 0;
}

/* Write worker.json so that exactly one shim per folder ever succeeds; returns 0 for the others. */
static int claim_identity(const struct handover *what, pid_t worker)
{
    char name[64], boot[128];
    snprintf(name, sizeof name, "worker.json.%d", (int)getpid());
    boot_id(boot, sizeof boot);
    int fd = openat(folder_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) fail("identity");
    int written = dprintf(fd,
        "{\"v\": 1, \"boot_id\": \"%s\", \"pid_namespace\": %llu, \"shim\": {\"pid\": %d, \"start_time\": %lld}, "
        "\"worker\": {\"pid\": %d, \"start_time\": %lld}, \"started_at\": %lld, \"meta\": %s}\n",
        boot, pid_namespace(), (int)getpid(), start_time(getpid()), (int)worker, start_time(worker),
        now_ms(CLOCK_REALTIME), what->meta);
    struct stat info;
    int whole = written > 0 && fstat(fd, &info) == 0 && info.st_size == written;
    if (!whole && errno == 0) errno = ENOSPC;
    int error = errno;
    close(fd);
    int linked = whole ? linkat(folder_fd, name, folder_fd, "worker.json", 0) : -1;
    if (whole) error = errno;
    unlinkat(folder_fd, name, 0);
    errno = error;
    if (linked < 0 && !(whole && error == EEXIST)) fail("identity");
    return linked == 0;
}

static int reserve_exit_record(void)
{
    char blank[EXIT_ROOM];
    memset(blank, ' ', sizeof blank);
    snprintf(exit_part, sizeof exit_part, "exit.json.%d", (int)getpid());
    int fd = openat(folder_fd, exit_part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) fail("exit record");
    errno = ENOSPC;
    if (write(fd, blank, sizeof blank) != (ssize_t)sizeof blank) fail("exit record");
    return fd;
}

static void write_exit_record(int fd, int status, const char *reason, const char *stage, int error)
{
    struct rusage used;
    char text[EXIT_ROOM], code[16] = "null", signal[16] = "null";
    getrusage(RUSAGE_CHILDREN, &used);
    if (WIFEXITED(status)) snprintf(code, sizeof code, "%d", WEXITSTATUS(status));
    if (WIFSIGNALED(status)) snprintf(signal, sizeof signal, "%d", WTERMSIG(status));
    memset(text, ' ', sizeof text);
    int length = snprintf(text, sizeof text,
        "{\"v\": 1, \"exit_code\": %s, \"signal\": %s, \"reason\": \"%s\", \"stage\": \"%s\", \"errno\": %d, "
        "\"ended_at\": %lld, \"max_rss\": %lld, \"cpu_ms\": %lld}",
        code, signal, reason, stage, error, now_ms(CLOCK_REALTIME),
#ifdef __linux__
        (long long)used.ru_maxrss * 1024,
#else
        (long long)used.ru_maxrss,
#endif
        ((long long)used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000
            + ((long long)used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1000);
    text[length] = ' ';
    text[sizeof text - 1] = '\n';
    if (pwrite(fd, text, sizeof text, 0) == (ssize_t)sizeof text)
        renameat(folder_fd, exit_part, folder_fd, "exit.json");
    close(fd);
}

/* ---- the worker ---- */

static void report(int fd, const char *stage)
{
    char text[64];
    int length = snprintf(text, sizeof text, "%s %d", stage, errno);
    if (write(fd, text, (size_t)length) < 0) _exit(126);
    _exit(127);
}

static void set_limit(int resource, long long value, long long room, int report_fd)
{
    struct rlimit limits = {(rlim_t)value, (rlim_t)(value + room)};
    if (value > 0 && setrlimit(resource, &limits) < 0) report(report_fd, "limit");
}

static void run_worker(const struct handover *what, int gate, int report_fd, int log_fd, pid_t shim)
{
    char go;
    setpgid(0, 0);
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a worker whose shim was killed could not be recorded, nor held to its limits */
    if (getppid() != shim) _exit(126);
#else
    (void)shim;
#endif
    if (read(gate, &go, 1) != 1) _exit(126); /* another shim was first: nothing runs */
    if (chdir(what->cwd) < 0) report(report_fd, "folder");
    int null_fd = open("/dev/null", O_RDONLY);
    if (null_fd < 0 || dup2(null_fd, 0) < 0 || dup2(log_fd, 1) < 0 || dup2(log_fd, 2) < 0) report(report_fd, "output");
    if (null_fd > 2) close(null_fd);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    signal(SIGQUIT, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_SETMASK, &original_mask, NULL);
    umask(original_umask);
    set_limit(RLIMIT_NOFILE, what->open_files, 0, report_fd);
    set_limit(RLIMIT_CPU, what->cpu_time, 1, report_fd);
    set_limit(RLIMIT_AS, what->memory, 0, report_fd);
    extern char **environ;
    environ = what->env;
    execvp(what->argv[0], what->argv);
    report(report_fd, "command");
}

/* ---- descendants ---- */

#ifdef __linux__
/* Any installation's shim counts, one that an upgrade has removed since too: its run is not ours to end. */
static int is_shim(const char *pid)
{
    static const char own[] = "/programs/provider/shim", removed[] = " (deleted)";
    char path[300], exe[4096];
    snprintf(path, sizeof path, "/proc/%s/exe", pid);
    ssize_t got = readlink(path, exe, sizeof exe - 1);
    if (got <= 0) return 0;
    exe[got] = 0;
    size_t length = (size_t)got, tail = sizeof removed - 1;
    if (length > tail && strcmp(exe + length - tail, removed) == 0) exe[length -= tail] = 0;
    tail = sizeof own - 1;
    return length >= tail && strcmp(exe + length - tail, own) == 0;
}

static pid_t parent_of(const char *pid)
{
    char path[300], text[1024];
    snprintf(path, sizeof path, "/proc/%s/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (got <= 0) return -1;
    text[got] = 0;
    char *end = strrchr(text, ')');
    return end == NULL || strlen(end) < 5 || end[2] == 'Z' ? -1 : (pid_t)atoi(end + 4);
}
#endif

/* Signal every process that this shim answers for; returns how many there still are, the worker itself not counted.
 *
 * `group` is the worker's, or 0 once it has been reaped: its number may then be another's. A direct child cannot lose
 * its pid to another process before it is reaped here, so nothing else is ever hit. A descendant deeper down becomes
 * a direct child as soon as its parent is gone.
 */
static int signal_all(pid_t group, int number)
{
    int found = 0;
    if (group && number) kill(-group, number);
#ifdef __linux__
    DIR *processes = opendir("/proc");
    for (struct dirent *entry; processes != NULL && (entry = readdir(processes)) != NULL;) {
        if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
        pid_t pid = (pid_t)atoi(entry->d_name);
        if (pid == group || parent_of(entry->d_name) != getpid() || is_shim(entry->d_name)) continue;
        found++;
        if (number) kill(pid, number);
    }
    if (processes != NULL) closedir(processes);
#endif
    return found;
}

/* ---- the life of the shim ---- */

static void become_session(void)
{
    pid_t child = fork(); /* the launcher must not be the parent: it would have to reap us long after it forgot us */
    if (child != 0) _exit(child < 0);
    setsid();
    original_umask = umask(077);
    status_fd = fcntl(1, F_DUPFD_CLOEXEC, 10);

    int handled[] = {SIGTERM, SIGQUIT, SIGCHLD};
    struct sigaction action;
    sigset_t blocked;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigemptyset(&blocked);
    for (int index = 0; index < 3; index++) {
        sigaction(handled[index], &action, NULL);
        sigaddset(&blocked, handled[index]);
    }
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_BLOCK, &blocked, &original_mask); /* they arrive in pselect only */
    for (int index = 0; index < 3; index++) sigdelset(&original_mask, handled[index]);
#ifdef __linux__
    prctl(PR_SET_CHILD_SUBREAPER, 1);
#endif
}

static void open_pipe(int ends[2])
{
    if (pipe(ends) < 0) fail("pipe");
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
}

/* Fork the worker, which waits at the gate until its identity is on disk; exits where another shim was first. */
static struct life start_worker(const struct handover *what)
{
    struct life life = {.phase = STARTING, .reason = "exited", .stage = "", .kill_at = -1};
    int gate[2], failure[2];
    pid_t shim = getpid();
    int log_fd = openat(folder_fd, "output.log", O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (log_fd < 0) fail("output");
    open_pipe(gate);
    open_pipe(failure);
    life.worker = fork();
    if (life.worker < 0) fail("fork");
    if (life.worker == 0) {
        close(gate[1]);
        run_worker(what, gate[0], failure[1], log_fd, shim);
    }
    setpgid(life.worker, life.worker);
    close(gate[0]);
    close(failure[1]);
    close(log_fd);
    life.failure = failure[0];
    life.exit_record = reserve_exit_record();
    if (!claim_identity(what, life.worker)) {
        unlinkat(folder_fd, exit_part, 0);
        tell("taken\n");
        _exit(0); /* the worker reads the end of the gate, and ends without having run anything */
    }
    unlinkat(folder_fd, "handover", 0);
    life.begun = now_ms(CLOCK_MONOTONIC);
    if (write(gate[1], "g", 1) != 1) fail("gate");
    close(gate[1]);
    return life;
}

static void let_go_of_the_caller(void)
{
    int null_fd = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++) dup2(null_fd, fd);
    close(null_fd);
    if (chdir("/") < 0) return; /* a worker's life must not keep the caller's file system busy */
}

/* The worker has reached exec (end of file), or says at which stage it failed. */
static void learn_of_start(struct life *life)
{
    static const char *stages[] = {"folder", "limit", "output", "command"};
    char text[64];
    ssize_t got = read(life->failure, text, sizeof text - 1);
    if (got > 0) {
        text[got] = 0;
        char *blank = strchr(text, ' ');
        life->error = blank == NULL ? 0 : atoi(blank + 1);
        life->reason = "start_failed";
        for (int index = 0; index < 4; index++)
            if (strncmp(text, stages[index], strlen(stages[index])) == 0) life->stage = stages[index];
        tell("error %s %d\n", life->stage, life->error);
    } else if (!life->stopping) {
        tell("started\n");
    }
    close(status_fd);
    close(life->failure);
    life->phase = RUNNING;
}

static void reap(struct life *life)
{
    int status;
    for (pid_t ended; (ended = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (ended != life->worker) continue;
        if (life->phase == STARTING) learn_of_start(life);
        life->status = status;
        life->phase = ENDED;
        signal_all(0, SIGTERM);
#ifndef __linux__
        kill(-life->worker, SIGTERM);
#endif
        if (!life->stopping) life->kill_at = now_ms(CLOCK_MONOTONIC) + AFTERLIFE_MS;
    }
}

static void stop(struct life *life, const struct handover *what, const char *reason)
{
    life->stopping = 1;
    life->reason = reason;
    life->kill_at = now_ms(CLOCK_MONOTONIC);
    if (life->phase == STARTING) {
        tell("error %s %d\n", reason, ETIMEDOUT);
    } else {
        life->kill_at += what->grace;
        signal_all(life->worker, SIGTERM);
    }
}

static void hold_to_limits(struct life *life, const struct handover *what)
{
    long long now = now_ms(CLOCK_MONOTONIC), age = now - life->begun;
    if (life->phase != ENDED && !life->stopping) {
        if (stop_asked || kill_asked) stop(life, what, "terminated");
        else if (life->phase == STARTING && age >= what->start_timeout) stop(life, what, "start_timeout");
        else if (life->phase == RUNNING && what->max_runtime && age >= what->max_runtime) stop(life, what, "max_runtime");
    }
    if (kill_asked) life->kill_at = now;
    if ((life->stopping || life->phase == ENDED) && now >= life->kill_at) {
        signal_all(life->phase == ENDED ? 0 : life->worker, SIGKILL);
#ifndef __linux__
        if (life->phase == ENDED) kill(-life->worker, SIGKILL);
#endif
    }
}

/* Sleep until something happens or the next limit is due. */
static int await(const struct life *life, const struct handover *what)
{
    long long now = now_ms(CLOCK_MONOTONIC), due = -1;
    if (life->phase == STARTING) due = life->begun + what->start_timeout;
    if (life->phase == RUNNING && what->max_runtime) due = life->begun + what->max_runtime;
    if (life->stopping || life->phase == ENDED) due = life->kill_at > now ? life->kill_at : now + 20;
    if (life->phase == ENDED && due > now + 20) due = now + 20; /* descendants of descendants end without a signal to us */
    struct timespec wait = {(due - now) / 1000, (due - now) % 1000 * 1000000};
    if (due >= 0 && due <= now) wait.tv_sec = wait.tv_nsec = 0;
    fd_set readable;
    FD_ZERO(&readable);
    if (life->phase == STARTING) FD_SET(life->failure, &readable);
    return pselect(life->failure + 1, &readable, NULL, NULL, due < 0 ? NULL : &wait, &original_mask) > 0;
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    become_session();
    folder_fd = open(argv[1], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder_fd < 0) fail("run folder");
    struct handover what = read_handover();
    struct life life = start_worker(&what);
    let_go_of_the_caller();
    while (life.phase != ENDED || signal_all(0, 0) > 0) {
        if (await(&life, &what) && life.phase == STARTING) learn_of_start(&life);
        reap(&life);
        hold_to_limits(&life, &what);
    }
    write_exit_record(life.exit_record, life.status, life.reason, life.stage, life.error);
    return 0;
}
