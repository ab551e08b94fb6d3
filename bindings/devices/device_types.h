/* Why a device could not be attached, as plain data; Python reads it through cffi
 * (bindings/python/native.h). */
#ifndef TENDER_DEVICE_TYPES_H
#define TENDER_DEVICE_TYPES_H

#include <stdint.h>

/* <native:types> */

/* What a net header before each frame is used for. */
enum net_use {
    NET_PLAIN,    /* nothing: there is none */
    NET_OFFLOAD,  /* by a guest that was granted the net offload */
    NET_SEGMENTS, /* by us: TCP segments are joined and cut (tcp_segments.h) */
};

/* What a device is to be, as options or a caller have it; a kind looks at what means something to it. Zeros
 * but for `fd` and `mtu` ask for nothing. */
struct device_settings {
    const char *source;   /* an interface by its name, a file by its path; NULL: `fd` */
    const char *shown;    /* what stands for `fd` in messages; NULL: @FD */
    uint32_t source_len;  /* so much of a path counts; 0: all of it */
    int32_t fd;           /* stays its owner's; -1: none */
    uint32_t mtu;         /* of a network by descriptor */
    uint32_t sector_size; /* of a disk; 0: to be said later, and nothing is checked against it */
    uint8_t mac[6];       /* zeros: a random one */
    uint8_t read_only;
    uint8_t raw; /* of a disk: the bytes are its own, whatever image format they look like */
    uint8_t
        opened; /* `fd` is one that open() made for it: what was checked and locked holds for a duplicate */
    uint8_t named;    /* `fd` is an interface that was found by its name */
    uint8_t reattach; /* a new interface of the same name takes the place of one that is deleted */
    /* What open() leaves for attach() and for who asked: */
    uint8_t reattaches; /* a new interface would be taken */
    uint8_t use;        /* enum net_use */
};

#define NET_NEWS_BYTES 512 /* of a line about a network whose interface was deleted */

#define DEVICE_NAME_SHOWN_MAX 4096 /* bytes of a name or path that a message repeats */

/* What is known beside errno; each has a code of its own in Python (tender/devices), and its way out. */
enum device_problem {
    DEVICE_OTHER = 0,
    DEVICE_TAP_MISSING = 1,
    DEVICE_TAP_DOWN = 2,
    DEVICE_TAP_DENIED = 3,
    DEVICE_TAP_BUSY = 4,
    DEVICE_TAP_KIND = 5,
    DEVICE_TAP_NAME_LONG = 6,
    DEVICE_TAP_PATTERN = 7,
    DEVICE_TUN = 8,
    DEVICE_DESCRIPTOR = 9,
    DEVICE_BLOCK_OPEN = 10,
    DEVICE_BLOCK_KIND = 11,
    DEVICE_LOCKED = 12,
    DEVICE_BLOCK_MISALIGNED = 13,
    DEVICE_BLOCK_SMALL = 14,
    DEVICE_BLOCK_APPENDS = 15,
    DEVICE_BLOCK_WRITE_ONLY = 16,
    DEVICE_BLOCK_READ_ONLY = 17,
    DEVICE_BLOCK_DIRECT = 18,
    DEVICE_BLOCK_SEALED = 19,
    DEVICE_PATH_ONLY = 20,
    DEVICE_NET_STREAM = 21,
    DEVICE_NET_UNCONNECTED = 22,
    DEVICE_NET_KIND = 23,
    DEVICE_NOT_INHERITED = 24,
    DEVICE_FILE_OPEN = 25,
    DEVICE_FILE_KIND = 26,
    DEVICE_FILE_PIPE = 27,
    DEVICE_FILE_NO_READER = 28,
    DEVICE_FILE_SOCKET = 29,
    DEVICE_FILE_READ_ONLY = 30,
    DEVICE_BLOCK_FORMAT = 31,
    DEVICE_BLOCK_OUTPUT = 32,
    DEVICE_CONSOLE = 33,
};

/* What a file is opened for (devices/file.c). */
enum file_use { FILE_IMAGE = 0, FILE_CONSOLE = 1, FILE_REPORT = 2 };

struct device_error {
    uint32_t problem; /* enum device_problem */
    int32_t os_error; /* errno, 0 where there is none */
    char text[4352];  /* one line, NUL-terminated: what, which, why */
};

/* </native:types> */

#endif
