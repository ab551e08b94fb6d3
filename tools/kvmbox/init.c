/*
 * PID 1 of the test VM. It loads the modules, opens the only channel to the host, makes the host's / the
 * root of the VM, runs one command and relays its output. It is linked statically, and keeps no libc state
 * from one step to the next. The host's side is kvmbox_lib/. kvmbox_lib/channel.py has the same frames.
 *
 *   frame:  u8 kind | u32 length, little endian | payload
 *
 *   to the test VM                                   from the test VM
 *   'S' setup   time_ns seed_hex rw_path...          'R' ready   "kvm", or what is wrong; sent after boot
 *                                                                and after setup
 *   'J' job     cwd argc argv... env...              'O' 'E'     stdout, stderr
 *   'I' stdin   data; empty at the end               'I'         stdin: the data went to the command
 *   'K' kill    u8 signal                            'X' exit    i32 status, 128+n for a death by signal n
 *
 * Each field of 'S' and 'J' ends with NUL. The host sends no 'I' before the previous one is acknowledged,
 * so a command that does not read its input blocks neither side.
 *
 * Rule: any failure before the command runs ends the test VM (die()). The host shows the console.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define CHUNK           65536u     /* of output in one frame */
#define FRAME_MAX       (8u << 20) /* ARG_MAX is 2 MiB; a longer frame means a broken stream */
#define DEVICE_WAIT_MS  60000      /* for a device, in the VM's time, which leaps with --icount when idle */
#define HANG_UP_WAIT_MS 10000      /* a port reads as empty for a moment before the host's end is reported */

static int channel = -1;

/* ---------------------------------------------------------------- ends and messages */

static void power_off(void)
{
    sync();
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

static void die(const char *what, const char *which)
{
    char line[512];
    int n = snprintf(line, sizeof line, "<0>kvmbox: %s %s: %s\n", what, which, strerror(errno));
    int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, line, (size_t)n) < 0)
        perror(what);
    power_off();
}

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

/* ---------------------------------------------------------------- the channel */

static void channel_write(const void *data, size_t length)
{
    const char *at = data;
    while (length) {
        ssize_t n = write(channel, at, length);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            die("write", "channel");
        if (n > 0) {
            at += n;
            length -= (size_t)n;
        }
    }
}

static void frame_send(char kind, const void *data, uint32_t length)
{
    static char frame[5 + CHUNK];
    frame[0] = kind;
    memcpy(frame + 1, &length, sizeof length);
    if (length)
        memcpy(frame + 5, data, length);
    channel_write(frame, 5 + length);
}

static void channel_read(void *data, size_t length)
{
    char *at = data;
    long waited_ms = 0;
    while (length) {
        ssize_t n = read(channel, at, length);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            die("read", "channel");
        if (n == 0) {
            if (++waited_ms == HANG_UP_WAIT_MS)
                power_off();
            pause_ms(1);
        }
        if (n > 0) {
            at += n;
            length -= (size_t)n;
        }
    }
}

struct frame {
    char kind;
    uint32_t length;
    char *data; /* followed by a NUL; the caller frees it */
};

static struct frame frame_receive(void)
{
    struct frame f;
    channel_read(&f.kind, sizeof f.kind);
    channel_read(&f.length, sizeof f.length);
    if (f.length > FRAME_MAX || !(f.data = malloc(f.length + 1))) {
        errno = EMSGSIZE;
        die("frame", "from the host");
    }
    channel_read(f.data, f.length);
    f.data[f.length] = 0;
    return f;
}

/* Opens a serial port in raw mode. In a VM without virtio, the kernel's command line names it. */
static int serial_open(const char *name)
{
    char path[64];
    struct termios raw;
    snprintf(path, sizeof path, "/dev/%s", name);
    int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || tcgetattr(fd, &raw) < 0)
        die("open", path);
    cfmakeraw(&raw);
    raw.c_cflag |= CLOCAL;
    cfsetspeed(&raw, B115200);
    if (tcsetattr(fd, TCSANOW, &raw) < 0)
        die("set up", path);
    return fd;
}

static int channel_find(void)
{
    DIR *ports = opendir("/sys/class/virtio-ports");
    struct dirent *entry;
    int found = -1;
    while (ports && found < 0 && (entry = readdir(ports))) {
        char path[300], name[32] = "";
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        if (read(fd, name, sizeof name - 1) > 0 && !strncmp(name, "kvmbox", 6)) {
            snprintf(path, sizeof path, "/dev/%s", entry->d_name);
            found = open(path, O_RDWR | O_CLOEXEC);
        }
        close(fd);
    }
    if (ports)
        closedir(ports);
    return found;
}

static void channel_open(void)
{
    const char *serial = getenv("KVMBOX_CHANNEL");
    if (serial) {
        channel = serial_open(serial);
        return;
    }
    for (int ms = 0; (channel = channel_find()) < 0; ms += 10) {
        if (ms == DEVICE_WAIT_MS)
            die("no port", "kvmbox");
        pause_ms(10);
    }
}

/* ---------------------------------------------------------------- boot */

static void mount_at(const char *type, const char *where, const char *options)
{
    mkdir(where, 0755);
    if (mount(type, where, type, 0, options) < 0)
        die("mount", where);
}

static void modules_load(void)
{
    char name[128], path[160];
    FILE *order = fopen("/modules/order", "re");
    if (!order)
        die("open", "/modules/order");
    while (fscanf(order, "%127s", name) == 1) {
        snprintf(path, sizeof path, "/modules/%s.ko", name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        const char *options = strcmp(name, "kvm_intel") ? NULL : getenv("KVMBOX_KVM_INTEL");
        if (fd < 0 || (syscall(SYS_finit_module, fd, options ? options : "", 0) < 0 && errno != EEXIST))
            die("load module", name);
        close(fd);
    }
    fclose(order);
}

static void loopback_up(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) < 0)
        die("up", "lo");
    close(fd);
}

static void ready_send(void)
{
    const char *text = access("/dev/kvm", R_OK | W_OK) ? strerror(errno) : "kvm";
    frame_send('R', text, (uint32_t)strlen(text));
}

/* ---------------------------------------------------------------- the root */

/* A resumed VM has the random state of its snapshot. Without a seed, all VMs would get the same numbers. */
static void random_seed(const char *hex)
{
    struct {
        struct rand_pool_info info;
        unsigned char bytes[64];
    } pool = {0};
    int n = 0;
    unsigned value;
    while (n < 64 && sscanf(hex + 2 * n, "%2x", &value) == 1)
        pool.bytes[n++] = (unsigned char)value;
    if (!n)
        return;
    pool.info.entropy_count = 8 * n;
    pool.info.buf_size = n;
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
        die("seed", "/dev/urandom");
    close(fd);
}

static void clock_set(const char *time_ns)
{
    long long ns = atoll(time_ns);
    struct timespec now = {ns / 1000000000, ns % 1000000000};
    if (clock_settime(CLOCK_REALTIME, &now) < 0)
        die("set", "clock");
}

static void host_mount(void)
{
    const char *disc = getenv("KVMBOX_DISC"); /* without virtio: a disc with copies of the host's files */
    const char *device = disc ? disc : "host", *type = disc ? "iso9660" : "virtiofs";
    mkdir("/host", 0755);
    /* kvmbox plugs the device in when it resumes the test VM, so the device may not be there yet. */
    for (int ms = 0; mount(device, "/host", type, disc ? MS_RDONLY : 0, NULL) < 0; ms += 5) {
        if (ms == DEVICE_WAIT_MS)
            die("mount", "the host's /");
        pause_ms(5);
    }
}

static void devices_make(void)
{
    mount_at("devtmpfs", "/new/dev", NULL);
    mount_at("devpts", "/new/dev/pts", "ptmxmode=666");
    mount_at("tmpfs", "/new/dev/shm", "mode=1777");
    chmod("/new/dev/kvm", 0666); /* there is no udev; ready_send() reports a missing device */
    chmod("/new/dev/net/tun", 0666);
    static const char *const links[][2] = {
        {"/proc/self/fd", "/new/dev/fd"},
        {"/proc/self/fd/0", "/new/dev/stdin"},
        {"/proc/self/fd/1", "/new/dev/stdout"},
        {"/proc/self/fd/2", "/new/dev/stderr"},
    };
    for (size_t i = 0; i < sizeof links / sizeof links[0]; i++)
        if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
            die("link", links[i][1]);
}

/* An overlay of a tmpfs on the host's /. What CMD writes outside of the bound paths is gone with the VM. */
static void root_build(void)
{
    host_mount();
    mount_at("tmpfs", "/upper", "mode=755,size=50%");
    mkdir("/upper/root", 0755);
    mkdir("/upper/work", 0755);
    mount_at("overlay", "/new", "lowerdir=/host,upperdir=/upper/root,workdir=/upper/work");
    mount_at("proc", "/new/proc", NULL);
    mount_at("sysfs", "/new/sys", NULL);
    devices_make();
    if (getenv("KVMBOX_DISC")) { /* a disc has only the requested files below these directories */
        mkdir("/new/run", 0755);
        mkdir("/new/tmp", 0755);
        if (chmod("/new/tmp", 01777) < 0)
            die("chmod", "/new/tmp");
        return;
    }
    mount_at("tmpfs", "/new/run", "mode=755");
    mount_at("tmpfs", "/new/tmp", "mode=1777");
}

/* Makes the path to bind on. /tmp and /run are empty, so a path below them does not exist yet. */
static void place_make(char *path, int is_directory)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
    if (is_directory)
        mkdir(path, 0755);
    else
        close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
}

static void path_bind(const char *path)
{
    char from[4096 + 8], to[4096 + 8];
    struct stat info;
    snprintf(from, sizeof from, "/host%s", path);
    snprintf(to, sizeof to, "/new%s", path);
    if (stat(from, &info) < 0)
        die("find on the host", path);
    place_make(to, S_ISDIR(info.st_mode));
    if (mount(from, to, NULL, MS_BIND, NULL) < 0)
        die("bind", path);
}

static char *next_field(char *field)
{
    return field + strlen(field) + 1;
}

static void setup(struct frame f)
{
    char *time_ns = f.data, *seed = next_field(time_ns);
    clock_set(time_ns);
    random_seed(seed);
    root_build();
    for (char *path = next_field(seed); path < f.data + f.length; path = next_field(path))
        path_bind(path);
    if (chdir("/new") < 0 || chroot(".") < 0 || chdir("/") < 0)
        die("enter", "/new");
}

/* ---------------------------------------------------------------- the command */

struct command {
    pid_t pid;
    int in, out, err;   /* our ends of its pipes; -1 when closed */
    struct frame input; /* what the command has not read yet; data is NULL if there is none */
    uint32_t input_taken;
};

static void command_exec(struct frame f)
{
    char *cwd = f.data, *field = next_field(cwd);
    int argc = atoi(field);
    size_t fields = 0;
    for (char *at = field; at < f.data + f.length; at = next_field(at))
        fields++;
    char **words = calloc(fields + 2, sizeof *words); /* argv, NULL, environment, NULL */
    size_t n = 0;
    if (!words)
        _exit(125);
    for (char *at = next_field(field); at < f.data + f.length; at = next_field(at)) {
        if (n == (size_t)argc)
            n++;
        words[n++] = at;
    }
    environ = words + argc + 1;
    if (chdir(cwd) < 0) {
        dprintf(2, "kvmbox: chdir %s: %s\n", cwd, strerror(errno));
        _exit(126);
    }
    execvp(words[0], words);
    dprintf(2, "kvmbox: %s: %s\n", words[0], strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

static void command_become(struct frame f, int in, int out, int err)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    setsid();
    dup2(in, 0);
    dup2(out, 1);
    dup2(err, 2);
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){65536, 1048576});
    command_exec(f);
}

static void nonblocking(int fd)
{
    fcntl(fd, F_SETFL, O_NONBLOCK);
}

static struct command command_start(struct frame f)
{
    int in[2], out[2], err[2];
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
        die("pipe", "for the command");
    pid_t pid = fork();
    if (pid < 0)
        die("fork", "for the command");
    if (!pid)
        command_become(f, in[0], out[1], err[1]);
    close(in[0]);
    close(out[1]);
    close(err[1]);
    nonblocking(in[1]);
    nonblocking(out[0]);
    nonblocking(err[0]);
    return (struct command){.pid = pid, .in = in[1], .out = out[0], .err = err[0]};
}

/* Sends one chunk of output to the host. Returns 0 if there was none. */
static int output_relay(int *fd, char kind)
{
    static char chunk[CHUNK];
    if (*fd < 0)
        return 0;
    ssize_t n = read(*fd, chunk, sizeof chunk);
    if (n > 0)
        frame_send(kind, chunk, (uint32_t)n);
    if (n == 0) {
        close(*fd);
        *fd = -1;
    }
    return n > 0;
}

static void input_close(struct command *c)
{
    if (c->in >= 0)
        close(c->in);
    c->in = -1;
}

static void input_relay(struct command *c)
{
    ssize_t n = write(c->in, c->input.data + c->input_taken, c->input.length - c->input_taken);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < 0)
        input_close(c); /* EPIPE: the command has closed its stdin */
    else
        c->input_taken += (uint32_t)n;
    if (c->in < 0 || c->input_taken == c->input.length) {
        free(c->input.data);
        c->input.data = NULL;
        frame_send('I', NULL, 0);
    }
}

static void input_accept(struct command *c, struct frame f)
{
    if (f.length && c->in >= 0) {
        c->input = f;
        c->input_taken = 0;
        return;
    }
    free(f.data);
    if (f.length)
        frame_send('I', NULL, 0);
    else
        input_close(c);
}

static void request_serve(struct command *c)
{
    struct frame f = frame_receive();
    if (f.kind == 'I') {
        input_accept(c, f);
        return;
    }
    /* Before its setsid(), the command does not lead a process group yet. */
    if (f.kind == 'K' && f.length == 1 && kill(-c->pid, f.data[0]) < 0)
        kill(c->pid, f.data[0]);
    free(f.data);
}

/* Reaps all children that ended, orphans too. Returns 1 and the status if the command is among them. */
static int command_ended(const struct command *c, int32_t *status)
{
    int raw, ended = 0;
    for (pid_t pid; (pid = waitpid(-1, &raw, WNOHANG)) > 0;) {
        if (pid != c->pid)
            continue;
        *status = WIFEXITED(raw) ? WEXITSTATUS(raw) : 128 + WTERMSIG(raw);
        ended = 1;
    }
    return ended;
}

static void child_ended(int signal_number)
{
    (void)signal_number; /* the handler only ends ppoll() */
}

static int32_t command_relay(struct command *c)
{
    int32_t status = 0;
    sigset_t none;
    sigemptyset(&none);
    while (!command_ended(c, &status)) {
        struct pollfd fds[] = {
            {.fd = channel, .events = POLLIN},
            {.fd = c->out, .events = POLLIN},
            {.fd = c->err, .events = POLLIN},
            {.fd = c->input.data ? c->in : -1, .events = POLLOUT},
        };
        /* SIGCHLD is blocked except here, so an end between waitpid() and ppoll() is not missed. */
        if (ppoll(fds, sizeof fds / sizeof fds[0], NULL, &none) < 0)
            continue;
        if (fds[0].revents & POLLIN)
            request_serve(c);
        else if (fds[0].revents & POLLHUP)
            power_off(); /* the host's side is gone */
        if (fds[1].revents)
            output_relay(&c->out, 'O');
        if (fds[2].revents)
            output_relay(&c->err, 'E');
        if (c->input.data && fds[3].revents)
            input_relay(c);
    }
    return status;
}

static void job(struct frame f)
{
    struct command c = command_start(f);
    int32_t status = command_relay(&c);
    kill(-1, SIGKILL); /* ends the processes that CMD left behind */
    while (output_relay(&c.out, 'O'))
        ;
    while (output_relay(&c.err, 'E'))
        ;
    sync();
    frame_send('X', &status, sizeof status);
}

int main(void)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    signal(SIGCHLD, child_ended);
    signal(SIGPIPE, SIG_IGN);
    umask(022);
    mount_at("proc", "/proc", NULL);
    mount_at("sysfs", "/sys", NULL);
    mount_at("devtmpfs", "/dev", NULL);
    modules_load();
    loopback_up();
    sethostname("kvmbox", 6);
    channel_open();
    ready_send();
    for (;;) {
        struct frame f = frame_receive();
        if (f.kind == 'S') {
            setup(f);
            ready_send();
        } else if (f.kind == 'J') {
            job(f);
        }
        free(f.data);
    }
}
