/*
 * Settings of a device, and the reason why a device could not be attached, as plain data. Python
 * reads them through cffi (bindings/python/native.h).
 */
#ifndef TENDER_DEVICE_TYPES_H
#define TENDER_DEVICE_TYPES_H

#include <stdint.h>

/* <native:types> */

/* Who uses the net header before each frame. */
enum net_use {
    NET_PLAIN,    /* nobody: there is no header */
    NET_OFFLOAD,  /* a guest that was granted the net offload */
    NET_SEGMENTS, /* the monitor, which joins and cuts TCP segments (tcp_segments.h) */
};

/*
 * The settings of a device, from options or from a caller. Each kind uses the fields that apply to
 * it. A field that is zero asks for nothing, except `fd` and `mtu`.
 */
struct device_settings {
    const char *source;   /* the name of an interface, or the path of a file; NULL: use `fd` */
    const char *shown;    /* the text for `fd` in messages; NULL: @FD */
    uint32_t source_len;  /* the number of bytes of a path that count; 0: all of them */
    int32_t fd;           /* its owner keeps it; -1: none */
    uint32_t mtu;         /* for a network given by a descriptor */
    uint32_t sector_size; /* for a disk; 0: it is set later, and nothing is checked against it now */
    uint8_t mac[6];       /* zeros: a random one */
    uint8_t read_only;
    uint8_t raw; /* for a disk: the bytes are the disk, even if they look like another image format */
    uint8_t
        opened; /* `fd` came from open() for this device: its checks and its lock hold for a duplicate too */
    uint8_t named;    /* `fd` is an interface that was found by its name */
    uint8_t reattach; /* a new interface of the same name replaces one that was deleted */
    /* Outputs of open(), for attach() and for the caller: */
    uint8_t reattaches; /* a new interface would be taken */
    uint8_t use;        /* enum net_use */
};

#define NET_NEWS_BYTES 512 /* capacity for a line about a network whose interface was deleted */

#define DEVICE_NAME_SHOWN_MAX 4096 /* maximum bytes of a name or path in a message */

/*
 * What is known in addition to errno. Each has its own code, and its own way out, in Python
 * (tender/devices).
 */
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

/* The purpose of an opened file (devices/file.c). */
enum file_use { FILE_IMAGE = 0, FILE_CONSOLE = 1, FILE_REPORT = 2 };

struct device_error {
    uint32_t problem; /* enum device_problem */
    int32_t os_error; /* errno, or 0 if there is none */
    char text[4352];  /* one line, NUL-terminated: what failed, for which device, and why */
};

/* </native:types> */

#endif
