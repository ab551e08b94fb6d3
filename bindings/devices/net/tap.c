/*
 * A guest's network: an existing TAP interface, or a descriptor on which each read() and write()
 * transfers one frame.
 *
 * The rules are solo5-hvt's: the interface is a TAP without packet information, exists, is up, and
 * has a single queue. Tender creates no interface, and needs no root rights if the interface
 * belongs to the user.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "device.h"
#include "net_frame.h"

#ifndef TUN_F_USO4 /* since Linux 6.2; at run time the kernel refuses them if it does not know them */
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

static int refuse(struct device_error *error, const char *name, enum device_problem problem, int os_error)
{
    return device_failed(error, problem, os_error, "Could not attach interface: %.*s: %s",
                         DEVICE_NAME_SHOWN_MAX, name, strerror(os_error));
}

static struct ifreq request_for(const char *name)
{
    struct ifreq request = {0};
    memcpy(request.ifr_name, name, strlen(name)); /* open_tap() has checked the length */
    return request;
}

/* Checks that the interface exists and is up, and reads its MTU. Returns 0, or -1 with *error. */
static int look_at(const char *name, uint32_t *mtu, struct device_error *error)
{
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0)
        return refuse(error, name, DEVICE_OTHER, errno);
    struct ifreq flags = request_for(name), size = request_for(name);
    int answer = ioctl(sock, SIOCGIFFLAGS, &flags);
    if (answer == 0)
        answer = ioctl(sock, SIOCGIFMTU, &size);
    int os_error = errno;
    close(sock);
    if (answer < 0 && os_error == ENODEV)
        return refuse(error, name, DEVICE_TAP_MISSING, ENOENT);
    if (answer < 0)
        return refuse(error, name, DEVICE_OTHER, os_error);
    if (!(flags.ifr_flags & (IFF_UP | IFF_RUNNING)))
        return refuse(error, name, DEVICE_TAP_DOWN, ENETDOWN);
    *mtu = (uint32_t)size.ifr_mtu;
    return 0;
}

/* Binds `fd` to the interface, as a TAP without packet information. */
static int bind_to(int fd, const char *name, enum net_use use, struct device_error *error)
{
    struct ifreq request = request_for(name);
    request.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | (use == NET_PLAIN ? 0 : IFF_VNET_HDR));
    /*
     * With CAP_NET_ADMIN, TUNSETIFF creates an interface if none has this name, for example if it
     * was deleted since look_at(). TUNSETIFINDEX asks for the index of another interface, lo's,
     * which is 1 everywhere. A creation then fails with EBUSY.
     */
    const unsigned taken = 1;
    (void)ioctl(fd, TUNSETIFINDEX, &taken);
    if (ioctl(fd, TUNSETIFF, &request) < 0)
        return refuse(error, name,
                      errno == EPERM    ? DEVICE_TAP_DENIED
                      : errno == EBUSY  ? DEVICE_TAP_BUSY
                      : errno == EINVAL ? DEVICE_TAP_KIND
                                        : DEVICE_OTHER,
                      errno);
    if (strncmp(request.ifr_name, name, sizeof request.ifr_name) != 0)
        return refuse(error, name, DEVICE_TAP_PATTERN, EINVAL);
    /* Offloads belong to the interface, so they outlive the descriptor that used them. */
    if (use == NET_PLAIN)
        (void)ioctl(fd, TUNSETOFFLOAD, 0);
    return 0;
}

/*
 * Returns a non-blocking descriptor, and the interface's MTU in *mtu. With a use other than
 * NET_PLAIN, each frame on it has a net header. With NET_PLAIN, the offloads of an earlier owner
 * are switched off.
 */
static int open_tap(const char *name, enum net_use use, uint32_t *mtu, struct device_error *error)
{
    if (strlen(name) >= IFNAMSIZ)
        return refuse(error, name, DEVICE_TAP_NAME_LONG, ENAMETOOLONG);
    if (look_at(name, mtu, error) < 0)
        return -1;
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        int os_error = errno;
        return device_failed(error, DEVICE_TUN, os_error, "Could not attach interface: %s: /dev/net/tun: %s",
                             name, strerror(os_error));
    }
    if (bind_to(fd, name, use, error) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/*
 * If `fd` is a TAP whose frames have a net header, sets the header's size and the offloads for
 * `use`, otherwise no offloads. Any other descriptor is not changed. Writes the result to `net`,
 * which is zeroed.
 */
static void use_header(int fd, enum net_use use, struct net_device *net)
{
    static const unsigned base = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    static const uint32_t segments = TENDER_OFFLOAD_CSUM | TENDER_OFFLOAD_TSO4 | TENDER_OFFLOAD_TSO6;
    struct ifreq request = {0};
    int header_bytes = sizeof(struct net_header);
    if (ioctl(fd, TUNGETIFF, &request) < 0)
        return;
    _Static_assert(sizeof net->link.name == sizeof request.ifr_name, "a name fits");
    memcpy(net->link.name, request.ifr_name, sizeof net->link.name);
    net->link.name[sizeof net->link.name - 1] = '\0';
    if (!(request.ifr_flags & IFF_VNET_HDR) || ioctl(fd, TUNSETVNETHDRSZ, &header_bytes) < 0)
        return;
    net->has_header = true;
    if (use == NET_OFFLOAD && ioctl(fd, TUNSETOFFLOAD, base | TUN_F_USO4 | TUN_F_USO6) == 0)
        net->offload = segments | TENDER_OFFLOAD_USO;
    else if (use == NET_OFFLOAD && ioctl(fd, TUNSETOFFLOAD, base) == 0) /* before Linux 6.2 */
        net->offload = segments;
    else if (use == NET_SEGMENTS && ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) == 0)
        net->segments = true;
    else
        (void)ioctl(fd, TUNSETOFFLOAD, 0);
}

int net_attach_again(const struct vm_device *device, struct device_error *error)
{
    uint32_t mtu; /* not used: the guest knows only the first interface's MTU */
    const struct net_device *net = net_of(device);
    struct net_device again = {0}; /* not used: it gets the same values as `net` */
    const char *name = net->link.name;
    if (look_at(name, &mtu, error) < 0 ||
        bind_to(device->fd, name, net->has_header ? NET_SEGMENTS : NET_PLAIN, error) < 0)
        return -1;
    use_header(device->fd, net->segments ? NET_SEGMENTS : net->offload ? NET_OFFLOAD : NET_PLAIN, &again);
    return 0;
}

int net_attach_here(const struct vm *vm, uint32_t handle, struct device_error *error)
{
    return net_attach_again(&vm->devices[handle], error);
}

static int refuse_descriptor(struct device_error *error, int fd, enum device_problem problem, const char *why)
{
    return device_failed(error, problem, problem == DEVICE_DESCRIPTOR ? errno : EINVAL,
                         "Could not attach interface: @%d: %s", fd, why);
}

static int check_socket(int fd, struct device_error *error)
{
    int type = 0;
    socklen_t type_len = sizeof type, peer_len;
    struct sockaddr_storage peer;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_len) < 0)
        return refuse_descriptor(error, fd, DEVICE_DESCRIPTOR, strerror(errno));
    if (type == SOCK_STREAM)
        return refuse_descriptor(error, fd, DEVICE_NET_STREAM,
                                 "a stream socket, which does not keep the boundaries of frames");
    peer_len = sizeof peer;
    if (getpeername(fd, (struct sockaddr *)&peer, &peer_len) < 0 && errno == ENOTCONN)
        return refuse_descriptor(error, fd, DEVICE_NET_UNCONNECTED, "the socket is not connected");
    return 0;
}

/* Returns 0 if one read() or write() on `fd` transfers one Ethernet frame, otherwise -1. */
static int check_descriptor(int fd, struct device_error *error)
{
    struct stat about;
    struct ifreq request = {0};
    const int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fstat(fd, &about) < 0)
        return refuse_descriptor(error, fd, DEVICE_DESCRIPTOR, strerror(errno));
    if (flags & O_PATH)
        return refuse_descriptor(error, fd, DEVICE_PATH_ONLY,
                                 "the descriptor names a file that is not open (O_PATH)");
    if (S_ISSOCK(about.st_mode))
        return check_socket(fd, error);
    if (!S_ISCHR(about.st_mode) || ioctl(fd, TUNGETIFF, &request) < 0)
        return refuse_descriptor(error, fd, DEVICE_NET_KIND, "neither a TAP interface nor a socket");
    if (!(request.ifr_flags & IFF_TAP) || !(request.ifr_flags & IFF_NO_PI))
        return refuse_descriptor(error, fd, DEVICE_NET_KIND,
                                 "not a TAP interface without packet information (IFF_TAP | IFF_NO_PI)");
    if ((flags & O_ACCMODE) != O_RDWR)
        return refuse_descriptor(error, fd, DEVICE_NET_KIND, "not open for reading and writing (O_RDWR)");
    return 0;
}

static int duplicate(int fd, struct device_error *error)
{
    if (check_descriptor(fd, error) < 0)
        return -1;
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    int on = 1;
    if (copy >= 0 && ioctl(copy, FIONBIO, &on) == 0)
        return copy;
    int os_error = errno;
    if (copy >= 0)
        close(copy);
    return refuse_descriptor(error, fd, DEVICE_DESCRIPTOR, strerror(os_error));
}

/* Replaces six zero bytes with a random address: unicast, locally administered. Returns 0 or -errno. */
static int choose_mac(uint8_t mac[6])
{
    static const uint8_t none[6];
    if (memcmp(mac, none, sizeof none) != 0)
        return 0;
    for (size_t got = 0; got < sizeof none;) {
        ssize_t n = getrandom(mac + got, sizeof none - got, 0);
        if (n < 0 && errno != EINTR)
            return -errno;
        got += n > 0 ? (size_t)n : 0;
    }
    mac[0] = (uint8_t)((mac[0] & 0xfe) | 0x02); /* unicast, locally administered */
    return 0;
}

/*
 * Whether readv() and writev() can be used, which a header needs. EBADF: no inherited filter
 * refuses them.
 */
static bool has_vectors(void)
{
    return readv(-1, NULL, 0) < 0 && errno == EBADF && writev(-1, NULL, 0) < 0 && errno == EBADF;
}

/* Returns the use of the header. The ring's area has space for the large frames of only one network. */
static enum net_use use_for(const struct device_guest *guest)
{
    uint32_t networks = 0;
    if (!guest)
        return NET_PLAIN;
    for (uint32_t i = 1; i < guest->manifest->entries; i++)
        networks += guest->manifest->e[i].type == MFT_NET_BASIC;
    if (guest->extensions & TENDER_FEATURE_NET_OFFLOAD)
        return NET_OFFLOAD;
    return guest->ring_mode != RING_NONE && networks == 1 && has_vectors() ? NET_SEGMENTS : NET_PLAIN;
}

int net_open(struct device_settings *settings, const struct device_guest *guest, struct mft_entry *entry,
             struct device_error *error)
{
    const enum net_use use = use_for(guest);
    uint32_t mtu = settings->mtu;
    memcpy(entry->u.net.mac, settings->mac, sizeof entry->u.net.mac);
    const int answer = choose_mac(entry->u.net.mac);
    if (answer < 0)
        return device_failed(error, DEVICE_OTHER, -answer, "%s: random numbers for a MAC address: %s",
                             entry->name, strerror(-answer));
    const int fd =
        settings->source ? open_tap(settings->source, use, &mtu, error) : duplicate(settings->fd, error);
    entry->u.net.mtu = (uint16_t)mtu;
    settings->use = (uint8_t)use;
    settings->reattaches = settings->reattach && (settings->source || settings->named);
    return fd;
}

int net_attach(const struct device_settings *settings, const struct mft_entry *entry,
               struct vm_device *device)
{
    (void)entry;
    struct net_device *net = net_of(device);
    struct stat about;
    if (fstat(device->fd, &about) < 0)
        return -errno;
    if (S_ISCHR(about.st_mode))
        use_header(device->fd, settings->use, net);
    net->is_socket = S_ISSOCK(about.st_mode);
    net->link.named = settings->source || settings->named;
    net->link.again = settings->reattaches;
    return 0;
}
