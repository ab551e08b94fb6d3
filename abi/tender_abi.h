/*
 * The ABI between guest and host: Solo5's hvt ABI, version 2, byte for byte (HVT_, MFT_), and our
 * extension of it (TENDER_). The extension exists only for a guest that asks for it with a note.
 * README.md describes both.
 *
 * Four readers use this text: guest C, the assembler (numbers only), host C, and cffi, which gets
 * exactly the lines between the marks. Only these may stand between the marks: `#define NAME
 * integer`, enums, structs of fixed-width types, and comments. tender_abi_check.h checks every
 * offset and size.
 *
 * All integers are little-endian. A guest-physical address (gpa) is identity-mapped in the guest.
 */
#ifndef TENDER_ABI_H
#define TENDER_ABI_H

/* <abi:numbers> */

/* ---- ELF notes. Both have the owner "Solo5" (6 bytes with its NUL). ---- */
#define HVT_NOTE_ABI_TYPE     0x31494241 /* "ABI1" */
#define HVT_NOTE_MFT_TYPE     0x3154464d /* "MFT1" */
#define HVT_NOTE_HEADER_BYTES 20         /* namesz, descsz, type, name[8] */
#define HVT_NOTE_ABI_ALIGN    4
#define HVT_NOTE_ABI_MAX      32
#define HVT_NOTE_MFT_ALIGN    8
#define HVT_NOTE_MFT_MAX      6668
#define HVT_ABI_TARGET_HVT    1
#define HVT_ABI_TARGET_SPT    2
#define HVT_ABI_TARGET_VIRTIO 3
#define HVT_ABI_TARGET_MUEN   4
#define HVT_ABI_TARGET_GENODE 5
#define HVT_ABI_TARGET_XEN    6
#define HVT_ABI_VERSION       2
#define HVT_ABI_VERSION_MIN   1 /* Solo5 0.6 to 0.7.5: the same hypercalls, another TLS layout in the ELF */

/* ---- Manifest ---- */
#define MFT_VERSION        1
#define MFT_MAX_ENTRIES    64 /* entry 0 is reserved: 63 devices */
#define MFT_NAME_BYTES     68 /* with the final NUL */
#define MFT_BLOCK_BASIC    1
#define MFT_NET_BASIC      2
#define MFT_RESERVED_FIRST 0x40000000

/* ---- Guest-physical memory map (docs/architecture.md has the picture) ---- */
#define HVT_GDT_GPA            0x1000
#define HVT_PML4_GPA           0x2000
#define HVT_PDPT_GPA           0x3000
#define HVT_PD_GPA             0x4000 /* four pages, one for each GiB */
#define HVT_PT_GPA             0x8000 /* the first 2 MiB */
#define HVT_BOOT_INFO_GPA      0x10000
#define HVT_LOW_UNMAPPED_BYTES 0x10000  /* no page below this is present in the guest */
#define HVT_GUEST_MIN_GPA      0x100000 /* lowest load address; memory below it is read-only to the guest */
#define HVT_MEM_GRANULE        0x200000
#define HVT_MEM_MAX            0x100000000
#define HVT_CMDLINE_BYTES      8192 /* with the final NUL */
#define HVT_PAGE_BYTES         4096

/* ---- Initial vCPU state, x86_64 ---- */
#define HVT_CR0          0x80010021 /* PE NE WP PG */
#define HVT_CR4          0x620      /* PAE OSFXSR OSXMMEXCPT */
#define HVT_EFER         0x500      /* LME LMA */
#define HVT_RFLAGS       0x2
#define HVT_GDT_CODE     0x00af99000000ffff
#define HVT_GDT_DATA     0x00cf93000000ffff
#define HVT_GDT_LIMIT    23
#define HVT_SELECTOR_CS  0x8
#define HVT_SELECTOR_DS  0x10
#define HVT_STACK_OFFSET 8 /* RSP at entry is the memory size minus this */

/* ---- Hypercalls: a 32-bit OUT to port base + number, EAX = gpa of the structure ---- */
#define HVT_PORT_BASE             0x500
#define HVT_PORT_NET_KICK         0x600
#define HVT_HYPERCALL_WALLTIME    1
#define HVT_HYPERCALL_PUTS        2
#define HVT_HYPERCALL_POLL        3
#define HVT_HYPERCALL_BLOCK_WRITE 4
#define HVT_HYPERCALL_BLOCK_READ  5
#define HVT_HYPERCALL_NET_WRITE   6
#define HVT_HYPERCALL_NET_READ    7
#define HVT_HYPERCALL_HALT        8
#define HVT_HYPERCALL_MAX         9 /* one past the last */

/* ---- Results of a hypercall ---- */
#define HVT_R_OK      0
#define HVT_R_AGAIN   1
#define HVT_R_EINVAL  2
#define HVT_R_EUNSPEC 3

#define HVT_EXIT_ABORT        255 /* status of a guest that aborts or traps */
#define HVT_HALT_COOKIE_BYTES 512 /* readable bytes at the address in a non-zero cookie */

/* ---- Boot info features ---- */
#define HVT_FEATURE_NET_RING 1

/* ---- The network ring: one ring for all network devices, if boot info offers it ---- */
#define HVT_RING_ENTRIES    1024
#define HVT_RING_WRITE      1 /* operations of an entry */
#define HVT_RING_READ       2
#define HVT_RING_AREA_BYTES 0x200000 /* at the end of memory; the guest's mem_size ends before it */

/* ---- Our extension: it exists only if the image has the note and the tender grants the feature. ---- */

/* The note. Its owner is "Tender" (7 bytes with its NUL). Its header is as long as Solo5's. */
#define TENDER_NOTE_EXTENSION_TYPE  0x31444e54 /* "TND1" */
#define TENDER_NOTE_EXTENSION_ALIGN 4
#define TENDER_NOTE_EXTENSION_MAX   64
#define TENDER_EXTENSION_VERSION    1 /* of the note and of the block */

/* Features, one bit each. The note has the bits of wanted features, the block those of granted ones. */
#define TENDER_FEATURE_GATE        1
#define TENDER_FEATURE_BLOCK_BATCH 2 /* needs the gate */
#define TENDER_FEATURE_NET_BATCH   4 /* needs the gate */
#define TENDER_FEATURE_NET_OFFLOAD 8 /* needs the net batch */

/*
 * The extension's hypercalls. Each has a slot in the gate page. Where an `out` exits from the guest
 * (under KVM), each has a port too.
 */
#define TENDER_HYPERCALL_BLOCK_BATCH 16
#define TENDER_HYPERCALL_NET_BATCH   17
#define TENDER_HYPERCALL_MAX         18 /* one past the last */

/* The requests of a block batch. */
#define TENDER_BLOCK_BATCH_MAX 256
#define TENDER_BLOCK_READ      1
#define TENDER_BLOCK_WRITE     2
#define TENDER_BLOCK_FLUSH     3

/* The maximum number of frames of a net batch, for each direction. */
#define TENDER_NET_BATCH_MAX 256

/* The offloads of a device, for a guest that was granted the net offload. Each works in both directions. */
#define TENDER_OFFLOAD_CSUM 1 /* incomplete checksums */
#define TENDER_OFFLOAD_TSO4 2 /* TCP segments up to 64 KiB, over IPv4 */
#define TENDER_OFFLOAD_TSO6 4 /* the same over IPv6 */
#define TENDER_OFFLOAD_USO  8 /* UDP datagrams of equal size, up to 64 KiB in all, over IPv4 and IPv6 */

/* The values of a frame's flags and gso_type, which are virtio's. */
#define TENDER_NET_NEEDS_CSUM 1 /* put the sum of the bytes from csum_start at csum_start + csum_offset */
#define TENDER_NET_DATA_VALID 2 /* of a received frame: its checksum was found correct */
#define TENDER_GSO_NONE       0
#define TENDER_GSO_TCP4       1
#define TENDER_GSO_TCP6       4
#define TENDER_GSO_UDP        5
#define TENDER_GSO_ECN        0x80 /* only together with one of the TCP types */

/*
 * Guest-physical addresses. All are below HVT_GUEST_MIN_GPA, so they are read-only to the guest.
 * Where nothing is granted, they read as zero.
 *
 *   0x80000 .. 0xff000   for the backend: a guest neither reads nor calls it
 *   0xff000              the gate page: slot N, 16 bytes at offset 16 * N, is hypercall N as a function
 *                        void (uint32_t gpa_of_structure) of the System V ABI. It may change what a
 *                        called function may change. There are slots for Solo5's hypercalls 1 to 8, and
 *                        for the extension's if their feature is granted.
 *   0xffe00              struct tender_extension; in the same page, because each page costs a fault
 *   0xfff00 .. 0x100000  for the backend
 */
#define TENDER_EXTENSION_MAGIC  0x58444e54 /* "TNDX" */
#define TENDER_TRAMPOLINES_GPA  0x80000
#define TENDER_GATE_GPA         0xff000
#define TENDER_GATE_SLOT_BYTES  16
#define TENDER_EXTENSION_GPA    0xffe00
#define TENDER_GATE_BACKEND_GPA 0xfff00

/* </abi:numbers> */

#ifndef __ASSEMBLER__
#include <stdint.h>

/* <abi:types> */

typedef uint64_t gpa_t;

/* The data of the note "ABI1": the tender that the unikernel is made for. */
struct hvt_abi_info {
    uint32_t target;
    uint32_t version;
    uint32_t reserved0;
    uint32_t reserved1;
};

/* The manifest. Each entry is one device; its index is the handle that the guest uses. */
struct mft_block_basic {
    uint64_t capacity; /* bytes */
    uint16_t block_size;
};

struct mft_net_basic {
    uint8_t mac[6];
    uint16_t mtu; /* without the 14-byte Ethernet header */
};

union mft_params {
    struct mft_block_basic block;
    struct mft_net_basic net;
};

struct mft_entry {
    char name[68];
    uint32_t type;
    union mft_params u;
    uint64_t host_private; /* always zero in the guest's copy */
    uint8_t attached;
    uint8_t padding[7];
};

struct mft {
    uint32_t version;
    uint32_t entries;
    struct mft_entry e[64];
};

/* It lies at HVT_BOOT_INFO_GPA, and RDI holds its address. The manifest and the command line follow it. */
struct hvt_boot_info {
    uint64_t mem_size;
    uint64_t kernel_end;
    uint64_t cpu_cycle_freq; /* TSC, Hz */
    gpa_t cmdline;
    gpa_t mft;
    uint32_t host_features;
    uint32_t guest_features;
    gpa_t net_ring; /* 0: the host offers no ring */
};

struct hvt_walltime {
    uint64_t nsecs; /* out: CLOCK_REALTIME */
};

struct hvt_puts {
    gpa_t data;
    uint64_t len;
};

struct hvt_poll {
    uint64_t timeout_nsecs; /* in: relative */
    uint64_t ready_set;     /* out: bit N is set if the device with handle N is ready */
    int32_t ret;            /* out: the number of ready devices */
};

struct hvt_block_write {
    uint64_t handle;
    uint64_t offset;
    gpa_t data;
    uint64_t len;
    int32_t ret;
};

struct hvt_block_read {
    uint64_t handle;
    uint64_t offset;
    gpa_t data;
    uint64_t len;
    int32_t ret;
};

struct hvt_net_write {
    uint64_t handle;
    gpa_t data;
    uint64_t len;
    int32_t ret;
};

struct hvt_net_read {
    uint64_t handle;
    gpa_t data;
    uint64_t len; /* in: the size of the buffer; out: the length of the frame */
    int32_t ret;
};

struct hvt_halt {
    gpa_t cookie; /* 0, or 512 readable bytes that begin with a struct hvt_trap_cookie */
    int32_t exit_status;
};

/* One request of the guest: to send one frame, or to take one. */
struct hvt_ring_entry {
    uint32_t operation;
    uint32_t handle;
    gpa_t data;
    uint32_t len; /* the length of the frame, or the size of the buffer */
    uint32_t id;  /* the guest chooses it; the commit repeats it */
    uint64_t reserved;
};

/* The answer to a read. A write has no commit. */
struct hvt_ring_commit {
    uint32_t id;
    int32_t ret;
    uint32_t len; /* the length of the frame */
    uint32_t reserved;
};

/* All indices run freely, modulo 2^32. The slot is the index modulo HVT_RING_ENTRIES. */
struct hvt_net_ring {
    /* the guest writes these */
    uint32_t ent_tail; /* entries posted */
    uint32_t com_head; /* commits taken */
    uint32_t guest_reserved[14];
    /* the host writes these */
    uint32_t ent_head;   /* entries served */
    uint32_t com_tail;   /* commits posted */
    uint32_t needs_kick; /* not 0: an entry is served only after an `out` to HVT_PORT_NET_KICK */
    uint32_t host_reserved[13];
    struct hvt_ring_entry entries[HVT_RING_ENTRIES];
    struct hvt_ring_commit commits[HVT_RING_ENTRIES];
};

/* The start of the data that a halt cookie points to, in a guest that trapped. */
struct hvt_trap_cookie {
    uint64_t cr2;
    uint64_t error_code;
    uint64_t rip;
    uint64_t cs;
    uint64_t rflags;
    uint64_t rsp;
    uint64_t ss;
};

/* The data of the note "TND1": the features of our extension that the unikernel can use. */
struct tender_extension_info {
    uint32_t version;
    uint32_t features;
    uint32_t reserved0;
    uint32_t reserved1;
};

/* The extension block, at TENDER_EXTENSION_GPA: the granted features. Without the magic there are none. */
struct tender_extension {
    uint32_t magic;
    uint32_t version;
    uint32_t features;
    uint32_t reserved;
    gpa_t gate; /* the gate page, if TENDER_FEATURE_GATE is granted */
};

/* One request to a disk. TENDER_BLOCK_FLUSH uses only the handle. */
struct tender_block_request {
    uint32_t op; /* TENDER_BLOCK_READ ... */
    int32_t ret; /* out: HVT_R_OK, EINVAL or EUNSPEC */
    uint64_t handle;
    uint64_t offset;
    gpa_t data;
    uint64_t len;
};

/* TENDER_HYPERCALL_BLOCK_BATCH: the requests are served in order, each like a single hypercall. */
struct tender_block_batch {
    gpa_t requests; /* an array of struct tender_block_request; the answers are written into it */
    uint32_t count;
    uint32_t done; /* out: the number of requests with an answer */
    int32_t ret;   /* out: HVT_R_OK: all have one; HVT_R_EINVAL: too many, and none was looked at */
    uint32_t reserved;
};

/* One frame of a net batch: a frame to send, or a buffer for a received frame. */
struct tender_net_frame {
    gpa_t data;
    uint32_t len; /* in: the length of the frame, or the size of the buffer; out: of the received frame */
    int32_t ret;  /* out: HVT_R_OK or HVT_R_EINVAL; for a buffer, only if it received a frame */
    /* With the net offload: virtio's net header, the work that is left to the host or the receiver. */
    uint8_t flags;        /* TENDER_NET_... */
    uint8_t gso_type;     /* TENDER_GSO_... */
    uint16_t hdr_len;     /* the length of all headers, a hint */
    uint16_t gso_size;    /* bytes after the headers, in each packet that this frame stands for */
    uint16_t csum_start;  /* offset from the frame's first byte */
    uint16_t csum_offset; /* offset from csum_start */
    uint16_t reserved[3];
};

/* TENDER_HYPERCALL_NET_BATCH: sends frames in order, then receives the frames that wait. */
struct tender_net_batch {
    uint64_t handle;
    gpa_t frames; /* an array of struct tender_net_frame: tx_count to send, then rx_count to fill */
    uint32_t tx_count;
    uint32_t rx_count;
    uint32_t tx_done;    /* out: the number of sent frames with an answer */
    uint32_t rx_done;    /* out: the number of filled buffers; they are the first ones */
    uint64_t timeout_ns; /* in: how long to wait if no frame was received; 0: do not wait */
    int32_t ret;         /* out: HVT_R_OK; HVT_R_EINVAL: no such device or too many, and none was looked at */
    uint32_t offload;    /* out: the device's TENDER_OFFLOAD_... bits */
};

/* </abi:types> */

#include "tender_abi_check.h"
#endif /* __ASSEMBLER__ */
#endif
