/*
 * A guest that misbehaves according to a seed, the same way every time. Devices service0 (handle 1)
 * and storage (handle 2, at least 8 KiB).
 *
 *     hostile --mode=survivable [--seed=1] [--calls=1000] [--solo5] [--no-waits]
 *         Makes only calls that the ABI answers: bad handles, offsets, lengths, odd frames. With --solo5 only
 *         valid frames and handles below 2^32, because solo5-hvt dies of odd frames and truncates handles.
 *         Compares each answer with the ABI, and the memory around each buffer and the inputs of each
 *         structure with their earlier content. With --no-waits polls do not wait: for millions of calls.
 *         Ends with "SURVIVED calls=N" and 0, or with "hostile: FAILED ..." and 1.
 *
 *     hostile --mode=wild [--seed=1] [--addresses=any|outside]
 *         Prints "wild: ..." and makes one access that the ABI forbids: a structure or a buffer that leaves
 *         memory or wraps, or one that the monitor would have to write into the low megabyte or into code
 *         (--addresses=outside: never those two). The monitor must end the run. Otherwise the guest prints
 *         "NOT STOPPED ..." and ends with 99, or with 98 if a halt with a bad cookie was granted.
 */
#include <tender/guest.h>

#include "gate.h"

TENDER_MANIFEST(2, TENDER_NET("service0"), TENDER_BLOCK("storage"));

#define NET_HANDLE   1
#define BLOCK_HANDLE 2
#define ARENA_BYTES  65536
#define BUFFER_MAX   9000 /* the longest named buffer */
#define CANARY       0xc5
#define CHECK_EVERY  256 /* calls between two checks of the whole arena */

static uint8_t arena[ARENA_BYTES] __attribute__((aligned(4096)));
static struct block_device disk;
static uint64_t state;
static uint64_t calls_made;
static bool for_solo5;
static bool never_waits;

static uint64_t random_next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint64_t random_below(uint64_t limit)
{
    return (random_next() >> 11) % limit;
}

#define ONE_OF(array) ((array)[random_below(sizeof(array) / sizeof((array)[0]))])

#define FAIL(...)                                                                                            \
    (printf("hostile: FAILED call %lu: ", calls_made), printf(__VA_ARGS__), printf("\n"), guest_exit(1))

/* ---- Survivable: the model of the ABI's answers, and the checks of memory ---- */

/* A named buffer inside the arena. All other bytes of the arena must keep the canary. */
struct buffer {
    size_t at, len;
};

static struct buffer buffer_draw(void)
{
    static const size_t sizes[] = {0,   1,   13,   14,   15,   60,   64,   511,
                                   512, 513, 1500, 1514, 1515, 2048, 4096, BUFFER_MAX};
    struct buffer buffer = {.len = ONE_OF(sizes)};
    buffer.at = 64 + random_below(ARENA_BYTES - 128 - buffer.len);
    return buffer;
}

static void arena_check(size_t from, size_t to, const struct buffer *except)
{
    for (size_t i = from; i < to; i++) {
        bool named = except && i >= except->at && i - except->at < except->len;
        if (!named && arena[i] != CANARY) {
            FAIL("memory at arena+%zu changed to 0x%02x, the buffer is at %zu with %zu bytes", i, arena[i],
                 except ? except->at : 0, except ? except->len : 0);
        }
    }
}

/* After each call checks the 64 bytes on either side, then writes the canary back into the buffer. */
static void buffer_done(const struct buffer *buffer)
{
    arena_check(buffer->at - 64, buffer->at, NULL);
    arena_check(buffer->at + buffer->len, buffer->at + buffer->len + 64, NULL);
    memset(arena + buffer->at, CANARY, buffer->len);
}

static gpa_t buffer_gpa(const struct buffer *buffer)
{
    return gpa_of(arena + buffer->at);
}

/* An address for a call that must be refused for another reason: the monitor has no reason to
 * access it. */
static gpa_t wild_gpa(void)
{
    uint64_t mem = guest_memory_bytes();
    const gpa_t places[] = {
        0,       8,          0x1000,     0x2000,     0x10000, 0x100000,  mem - 1,       mem,
        mem + 1, 0xffffffff, 1ULL << 32, 1ULL << 63, ~0ULL,   ~0xfffULL, gpa_of(arena), gpa_of(&guest_alloc)};
    return ONE_OF(places);
}

static uint64_t bad_handle(uint64_t good)
{
    static const uint64_t handles[] = {
        0,   1,   2,          3,          62,         63,         64,         65,          127,
        255, 256, 0x7fffffff, 0x80000000, 0xffffffff, 1ULL << 63, UINT64_MAX, 0x100000001, 0x100000002};
    uint64_t handle;
    do {
        handle = ONE_OF(handles);
    } while (handle == good || (for_solo5 && (uint32_t)handle == good));
    return handle;
}

static void expect_result(const char *what, int32_t expected, int32_t got)
{
    if (expected != got) {
        FAIL("%s: expected result %d got %d", what, expected, got);
    }
}

static void try_walltime(void)
{
    struct hvt_walltime call = {0};
    gate_walltime(&call);
    if (call.nsecs < 1704067200000000000) {
        FAIL("walltime: %lu is before 2024", call.nsecs);
    }
}

/* Empty text most of the time, because the test that started this guest reads the console. */
static void try_puts(void)
{
    static const char dot[] = ".\n";
    struct hvt_puts call = {.data = gpa_of(dot), .len = random_below(64) ? 0 : 2};
    uint64_t len = call.len;
    gate_puts(&call);
    if (call.data != gpa_of(dot) || call.len != len) {
        FAIL("puts: an input changed");
    }
}

static void try_poll(void)
{
    static const uint64_t timeouts[] = {0, 1, 999, 1000, 50000};
    uint64_t timeout = never_waits ? 0 : ONE_OF(timeouts);
    struct hvt_poll call = {.timeout_nsecs = timeout, .ready_set = ~0ULL, .ret = 77};
    gate_poll(&call);
    uint64_t ready = call.ready_set & (1ULL << NET_HANDLE);
    if (call.timeout_nsecs != timeout || call.ready_set != ready || call.ret != (ready != 0)) {
        FAIL("poll: set 0x%lx ret %d", call.ready_set, call.ret);
    }
}

/* The answer to hypercalls 4 and 5, according to the ABI's text. */
static int32_t block_model(uint64_t handle, uint64_t offset, uint64_t len)
{
    uint64_t end;
    if (handle != BLOCK_HANDLE || len >> 63 || offset >= disk.capacity ||
        __builtin_add_overflow(offset, len, &end) || end > disk.capacity) {
        return HVT_R_EINVAL;
    }
    return HVT_R_OK;
}

static uint64_t number_draw(void)
{
    uint64_t end = disk.capacity;
    const uint64_t numbers[] = {0,
                                1,
                                511,
                                512,
                                513,
                                4096,
                                end - 512,
                                end - 1,
                                end,
                                end + 1,
                                end * 2,
                                0xffffffff,
                                1ULL << 32,
                                (1ULL << 63) - 1,
                                1ULL << 63,
                                ~0ULL,
                                ~0ULL - 511,
                                ~511ULL,
                                random_next(),
                                random_below(end)};
    return ONE_OF(numbers);
}

static void try_block(bool write)
{
    struct buffer buffer = buffer_draw();
    struct hvt_block_write call = {
        .handle = random_below(4) ? BLOCK_HANDLE : bad_handle(BLOCK_HANDLE),
        .offset = number_draw(),
        .data = buffer_gpa(&buffer),
        .len = random_below(2) ? buffer.len : number_draw(),
        .ret = 77,
    };
    int32_t expected = block_model(call.handle, call.offset, call.len);
    if (expected == HVT_R_OK && call.len > buffer.len) { /* a real transfer: keep it in the buffer */
        call.len = buffer.len;
        expected = block_model(call.handle, call.offset, call.len);
    }
    if (expected != HVT_R_OK && random_below(2)) {
        call.data = wild_gpa();
    }
    const struct hvt_block_write before = call;
    if (write) {
        gate_block_write(&call);
    } else {
        struct hvt_block_read read = {call.handle, call.offset, call.data, call.len, call.ret};
        gate_block_read(&read);
        call = (struct hvt_block_write){read.handle, read.offset, read.data, read.len, read.ret};
    }
    if (expected != call.ret) {
        FAIL("block_%s handle 0x%lx offset 0x%lx len 0x%lx: expected result %d got %d",
             write ? "write" : "read", before.handle, before.offset, before.len, expected, call.ret);
    }
    if (call.handle != before.handle || call.offset != before.offset || call.data != before.data ||
        call.len != before.len) {
        FAIL("block: an input changed");
    }
    const struct buffer changed = {buffer.at, write || expected != HVT_R_OK ? 0 : before.len};
    arena_check(buffer.at + changed.len, buffer.at + buffer.len, NULL);
    buffer_done(&buffer);
}

static void try_net_bad_handle(bool write)
{
    uint64_t handle = bad_handle(NET_HANDLE);
    gpa_t data = wild_gpa();
    uint64_t len = number_draw();
    struct hvt_net_write call = {handle, data, len, 77};
    if (write) {
        gate_net_write(&call);
    } else {
        struct hvt_net_read read = {handle, data, len, 77};
        gate_net_read(&read);
        call = (struct hvt_net_write){read.handle, read.data, read.len, read.ret};
    }
    expect_result(write ? "net_write with a bad handle" : "net_read with a bad handle", HVT_R_EINVAL,
                  call.ret);
    if (call.handle != handle || call.data != data || call.len != len) {
        FAIL("net: an input changed");
    }
}

static void try_net_write(void)
{
    struct buffer buffer = buffer_draw();
    if (for_solo5 && (buffer.len < 14 || buffer.len > 1514)) {
        buffer.len = 60;
    }
    if (buffer.len >= 14) { /* broadcast, of an experimental type: no host answers */
        memset(arena + buffer.at, 0xff, 6);
        memcpy(arena + buffer.at + 6, "\x02\x00\x00\x00\x00\x01\x88\xb5", 8);
    }
    struct hvt_net_write call = {NET_HANDLE, buffer_gpa(&buffer), buffer.len, 77};
    gate_net_write(&call);
    bool sound = buffer.len >= 14 && buffer.len <= 1514;
    bool allowed =
        call.ret == HVT_R_OK || (!sound && (call.ret == HVT_R_EINVAL || call.ret == HVT_R_EUNSPEC));
    if (!allowed || call.len != buffer.len || call.data != buffer_gpa(&buffer)) {
        FAIL("net_write of %zu bytes: result %d", buffer.len, call.ret);
    }
    buffer_done(&buffer);
}

static void try_net_read(void)
{
    struct buffer buffer = buffer_draw();
    struct hvt_net_read call = {NET_HANDLE, buffer_gpa(&buffer), buffer.len, 77};
    gate_net_read(&call);
    bool got = call.ret == HVT_R_OK && call.len <= buffer.len;
    bool none = call.ret == HVT_R_AGAIN && call.len == buffer.len;
    if (!got && !none) {
        FAIL("net_read into %zu bytes: result %d length %lu", buffer.len, call.ret, call.len);
    }
    size_t filled = got ? call.len : 0;
    arena_check(buffer.at + filled, buffer.at + buffer.len, NULL);
    buffer_done(&buffer);
}

static void survive(uint64_t calls)
{
    memset(arena, CANARY, sizeof(arena));
    for (calls_made = 0; calls_made < calls; calls_made++) {
        switch (random_below(10)) {
        case 0:
            try_walltime();
            break;
        case 1:
            try_puts();
            break;
        case 2:
            try_poll();
            break;
        case 3:
        case 4:
            try_block(true);
            break;
        case 5:
        case 6:
            try_block(false);
            break;
        case 7:
            try_net_bad_handle(random_below(2));
            break;
        case 8:
            try_net_write();
            break;
        case 9:
            try_net_read();
            break;
        }
        if (calls_made % CHECK_EVERY == 0) {
            arena_check(0, sizeof(arena), NULL);
        }
    }
    arena_check(0, sizeof(arena), NULL);
    heap_check();
    printf("SURVIVED calls=%lu\n", calls);
}

/* ---- Wild: one forbidden access ---- */

struct range {
    gpa_t at;
    uint64_t len;
};

/* A buffer that no monitor may access. `written`: the monitor writes it, so low memory and code are
 * forbidden too. */
static struct range forbidden_buffer(bool written, bool only_outside)
{
    uint64_t mem = guest_memory_bytes();
    const struct range outside[] = {
        {mem, 16},
        {mem + 1, 16},
        {mem - 1, 16},
        {mem - 1, 2},
        {mem - 4096, 8192},
        {~0ULL, 16},
        {~0ULL, 2},
        {1ULL << 63, 16},
        {1ULL << 32, 4096},
        {0xffffffff, 16},
        {mem - 16, ~0ULL},
        {gpa_of(arena), ~0ULL},
        {gpa_of(arena), 0 - gpa_of(arena)},
        {gpa_of(arena), mem},
        {gpa_of(arena), 1ULL << 63},
        {~0ULL - 4095, 8192},
        {0x100000000000, 512},
        {mem + 0x200000, 512},
    };
    const struct range to_write[] = {
        {0, 512},
        {8, 16},
        {0x1000, 24},
        {0x2000, 4096},
        {0x4000, 512},
        {0x8000, 4096},
        {0x10000, 56},
        {0xff000, 4096},
        {0xfffff, 16},
        {0x100000, 16},
        {gpa_of(&guest_alloc), 64},
        {gpa_of(&guest_alloc) & ~0xfffULL, 4096},
    };
    return written && !only_outside && random_below(2) ? ONE_OF(to_write) : ONE_OF(outside);
}

/* A structure that no monitor may access: EAX has 32 bits. All structures except those of puts and
 * halt are written. */
static uint32_t forbidden_structure(bool written, bool only_outside)
{
    uint64_t mem = guest_memory_bytes();
    const uint64_t to_write[] = {
        0, 8, 0x1000, 0x2000, 0x10000, 0xffff0, 0xffffc, 0x100000, gpa_of(&guest_alloc)};
    const uint64_t outside[] = {mem, mem + 1, mem - 1, mem - 4, mem - 7, mem + 4096, 0xffffffff, 0xfffffff9};
    uint64_t at = written && !only_outside && random_below(2) ? ONE_OF(to_write) : ONE_OF(outside);
    return (uint32_t)(at > 0xffffffff ? 0xffffffff : at);
}

static void hypercall_at(unsigned number, uint32_t structure)
{
    uint16_t port = (uint16_t)(HVT_PORT_BASE + number);
    __asm__ volatile("out %%eax, %%dx" : : "a"(structure), "d"(port) : "memory");
}

static const char *const names[HVT_HYPERCALL_MAX] = {
    "", "walltime", "puts", "poll", "block_write", "block_read", "net_write", "net_read", "halt"};

static void wild_structure(unsigned number, bool only_outside)
{
    bool written = number != HVT_HYPERCALL_PUTS && number != HVT_HYPERCALL_HALT;
    uint32_t structure = forbidden_structure(written, only_outside);
    printf("wild: %s structure at 0x%x\n", names[number], structure);
    hypercall_at(number, structure);
}

static void wild_buffer(unsigned number, bool only_outside)
{
    bool written = number == HVT_HYPERCALL_BLOCK_READ || number == HVT_HYPERCALL_NET_READ;
    struct range range = forbidden_buffer(written, only_outside);
    bool block = number == HVT_HYPERCALL_BLOCK_WRITE || number == HVT_HYPERCALL_BLOCK_READ;
    if (block && range.len > disk.capacity) {
        range.len = disk.capacity; /* otherwise the range on the device is refused first */
    }
    if (number == HVT_HYPERCALL_HALT) {
        range.len = HVT_HALT_COOKIE_BYTES; /* the ABI fixes this length */
    }
    uint64_t mem = guest_memory_bytes();
    if (range.at >= gpa_of(arena) && range.at < mem && range.len <= mem - range.at) {
        range.at = mem - range.len / 2; /* the shorter length would be allowed at that address */
    }
    printf("wild: %s buffer at 0x%lx length 0x%lx\n", names[number], range.at, range.len);
    struct hvt_puts puts = {range.at, range.len};
    struct hvt_block_write block_call = {BLOCK_HANDLE, 0, range.at, range.len, 77};
    struct hvt_net_write net_call = {NET_HANDLE, range.at, range.len, 77};
    struct hvt_halt halt = {range.at, 98};
    const gpa_t structures[HVT_HYPERCALL_MAX] = {
        [HVT_HYPERCALL_PUTS] = gpa_of(&puts),
        [HVT_HYPERCALL_BLOCK_WRITE] = gpa_of(&block_call),
        [HVT_HYPERCALL_BLOCK_READ] = gpa_of(&block_call),
        [HVT_HYPERCALL_NET_WRITE] = gpa_of(&net_call),
        [HVT_HYPERCALL_NET_READ] = gpa_of(&net_call),
        [HVT_HYPERCALL_HALT] = gpa_of(&halt),
    };
    hypercall_at(number, (uint32_t)structures[number]);
    printf("wild: came back, block result %d, net result %d\n", block_call.ret, net_call.ret);
}

static void go_wild(bool only_outside)
{
    static const unsigned with_buffer[] = {HVT_HYPERCALL_PUTS,       HVT_HYPERCALL_BLOCK_WRITE,
                                           HVT_HYPERCALL_BLOCK_READ, HVT_HYPERCALL_NET_WRITE,
                                           HVT_HYPERCALL_NET_READ,   HVT_HYPERCALL_HALT};
    unsigned number;
    if (random_below(2)) {
        number = 1 + (unsigned)random_below(HVT_HYPERCALL_HALT);
        wild_structure(number, only_outside);
    } else {
        number = ONE_OF(with_buffer);
        wild_buffer(number, only_outside);
    }
    printf("NOT STOPPED %s\n", names[number]);
    guest_exit(99);
}

static bool mode_is(const char *value, const char *word)
{
    return value && strcmp(value, word) == 0;
}

int main(int argc, char **argv)
{
    uint64_t seed = 1, calls = 1000;
    number_parse(args_value(argc, argv, "--seed="), &seed);
    number_parse(args_value(argc, argv, "--calls="), &calls);
    state = (seed + 1) * 0x9e3779b97f4a7c15;
    state = state ? state : 1;
    for (int i = 0; i < 8; i++) { /* similar seeds begin alike */
        random_next();
    }
    if (block_open("storage", &disk) != GUEST_OK || disk.capacity < 8192) {
        panic("hostile: no block device storage of 8192 bytes at least");
    }
    const char *mode = args_value(argc, argv, "--mode=");
    if (mode_is(mode, "survivable")) {
        for_solo5 = args_has(argc, argv, "--solo5");
        never_waits = args_has(argc, argv, "--no-waits");
        survive(calls);
        return 0;
    }
    if (mode_is(mode, "wild")) {
        go_wild(args_has(argc, argv, "--addresses=outside"));
    }
    panic("hostile: --mode=%s is not survivable or wild", mode ? mode : "");
}
