/* See report.h. The sandbox's program runs it too: no floating point, and only the formats of format.c. */
#include "report.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "debug_note.h"
#include "hypercall.h"

#define SCHEMA 1

#define COUNT(array) (sizeof(array) / sizeof *(array))

struct line {
    char *at, *end;
};

static __attribute__((format(printf, 2, 3))) void add(struct line *line, const char *format, ...)
{
    va_list arguments;
    const size_t capacity = (size_t)(line->end - line->at);
    va_start(arguments, format);
    const int length = vsnprintf(line->at, capacity, format, arguments);
    va_end(arguments);
    line->at += length < 0 ? 0 : (size_t)length < capacity ? (size_t)length : capacity - 1;
}

static void put(struct line *line, char byte)
{
    if (line->end - line->at > 1)
        *line->at++ = byte;
}

/* Returns how many bytes of `text` form one UTF-8 character, and sets *number to its code point; 0: none. */
static unsigned character_at(const char *text, uint32_t *number)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char first = (unsigned char)*text;
    const unsigned bytes = first < 0x80                     ? 1
                           : first >= 0xc2 && first < 0xe0  ? 2
                           : first >= 0xe0 && first < 0xf0  ? 3
                           : first >= 0xf0 && first <= 0xf4 ? 4
                                                            : 0;
    *number = bytes < 2 ? first : first & (0x7fu >> bytes);
    for (unsigned i = 1; i < bytes; i++) {
        if ((text[i] & 0xc0) != 0x80)
            return 0;
        *number = *number << 6 | (text[i] & 0x3f);
    }
    const bool is_surrogate = *number >= 0xd800 && *number < 0xe000;
    return bytes && *number >= least[bytes] && *number < 0x110000 && !is_surrogate ? bytes : 0;
}

/* Writes ASCII only. A byte that is not valid UTF-8 appears as that byte: the decoded text has \xff. */
static void add_text(struct line *line, const char *text)
{
    put(line, '"');
    while (*text) {
        uint32_t number;
        const unsigned bytes = character_at(text, &number);
        if (!bytes)
            add(line, "\\\\x%02x", (unsigned char)*text);
        else if (number >= 0x20 && number < 0x7f && number != '"' && number != '\\')
            put(line, *text);
        else if (number < 0x10000)
            add(line, "\\u%04x", number);
        else
            add(line, "\\u%04x\\u%04x", 0xd800 + ((number - 0x10000) >> 10), 0xdc00 + (number & 0x3ff));
        text += bytes ? bytes : 1;
    }
    put(line, '"');
}

static void add_trap(struct line *line, const struct hvt_trap_cookie *trap)
{
    add(line,
        "{\"cr2\": %lu, \"error_code\": %lu, \"rip\": %lu, \"cs\": %lu, \"rflags\": %lu, \"rsp\": %lu, "
        "\"ss\": %lu}",
        trap->cr2, trap->error_code, trap->rip, trap->cs, trap->rflags, trap->rsp, trap->ss);
}

#define PLAIN_COUNTERS(COUNTER)                                                                              \
    COUNTER(console_bytes)                                                                                   \
    COUNTER(console_lost_bytes)                                                                              \
    COUNTER(net_rx_packets)                                                                                  \
    COUNTER(net_rx_bytes)                                                                                    \
    COUNTER(net_tx_packets)                                                                                  \
    COUNTER(net_tx_bytes)                                                                                    \
    COUNTER(net_tx_drops)                                                                                    \
    COUNTER(net_rx_errors)                                                                                   \
    COUNTER(net_rx_drops)                                                                                    \
    COUNTER(net_ring_kicks)                                                                                  \
    COUNTER(net_batches)                                                                                     \
    COUNTER(net_detached)                                                                                    \
    COUNTER(net_attached)                                                                                    \
    COUNTER(block_reads)                                                                                     \
    COUNTER(block_read_bytes)                                                                                \
    COUNTER(block_writes)                                                                                    \
    COUNTER(block_write_bytes)                                                                               \
    COUNTER(block_errors)                                                                                    \
    COUNTER(block_flushes)                                                                                   \
    COUNTER(block_batches)                                                                                   \
    COUNTER(trapped_hypercalls)                                                                              \
    COUNTER(emulated)                                                                                        \
    COUNTER(guest_faults)
#define ONE(name) +1
_Static_assert(sizeof(struct vm_counters) ==
                   (1 + COUNT(((struct vm_counters *)0)->hypercalls) PLAIN_COUNTERS(ONE)) * sizeof(uint64_t),
               "the report has each counter");

static void add_counters(struct line *line, const struct vm_shared *shared)
{
    const struct vm_counters *c = &shared->counters, *ring = &shared->ring_counters;
    const char *before = "";
    add(line, "{\"exits\": %lu, \"hypercalls\": {", c->exits);
    for (uint32_t number = 0; number < COUNT(c->hypercalls); number++) {
        const char *name = hypercall_name(number);
        if (name)
            add(line, "%s\"%s\": %lu", before, name, c->hypercalls[number]);
        before = name ? ", " : before;
    }
    add(line, "}");
#define ADD(name) add(line, ", \"" #name "\": %lu", c->name + ring->name);
    PLAIN_COUNTERS(ADD)
    add(line, ", \"net_ring_packets\": %lu}", ring->net_rx_packets + ring->net_tx_packets);
}

/* The steps of a boot, as clock values, and as milliseconds since the first step. */
static void add_boot(struct line *line, const struct report_about *about, const struct vm_shared *shared)
{
    static const char names[][16] = {"vm_created", "first_run", "first_exit", "first_console", "guest_exit"};
    const struct vm_timeline *t = &shared->timeline;
    const uint64_t steps[] = {about->vm_created_ns, t->first_run, t->first_exit, t->first_console,
                              t->guest_exit};
    add(line, "\"boot\": {\"start\": %lu", about->start_ns);
    for (size_t i = 0; i < COUNT(steps); i++)
        add(line, ", \"%s\": %lu", names[i], steps[i]);
    add(line, "}, \"boot_ms\": {");
    for (size_t i = 0; i < COUNT(steps); i++) {
        const uint64_t since_ns = steps[i] - about->start_ns;
        add(line, "%s\"%s\": ", i ? ", " : "", names[i]);
        if (steps[i])
            add(line, "%lu.%06lu", since_ns / 1000000, since_ns % 1000000);
        else
            add(line, "null");
    }
    add(line, "}");
}

static void add_fault(struct line *line, const struct vm_event *event)
{
    const struct code_words code = event_code(event);
    add(line, "{\"rip\": %lu, \"instruction\": \"%s\", \"registers\": {", event->rip, code.text);
    for (uint32_t i = 0; i < EVENT_REGISTERS; i++) {
        uint64_t value;
        const char *name = event_register(event, i, &value);
        add(line, "%s\"%s\": %lu", i ? ", " : "", name, value);
    }
    add(line, "}}");
}

static void add_isolation(struct line *line, uint32_t isolation)
{
    const char *before = "";
    add(line, "[");
    for (uint32_t i = 0; isolation_name(i); i++)
        if (isolation & 1u << i) {
            add(line, "%s\"%s\"", before, isolation_name(i));
            before = ", ";
        }
    add(line, "]");
}

/* The same fields as to_dict() (tender/errors.py). */
static void add_error(struct line *line, const struct told_exit *told)
{
    add(line, ", \"error\": {\"error\": \"%s\", \"code\": \"%s\", \"message\": ", told->error, told->code);
    add_text(line, told->message);
    add(line, ", \"hint\": ");
    add_text(line, told->hint);
    if (told->os_error >= 0)
        add(line, ", \"errno\": %d", told->os_error);
    add(line, "}");
}

static void add_run(struct line *line, const struct report_about *about, const struct vm_event *event,
                    const struct vm_shared *shared)
{
    add(line, ", \"trap\": ");
    if (event->kind == EVENT_HALT && event->cookie_valid)
        add_trap(line, &event->trap);
    else
        add(line, "null");
    add(line, ", \"counters\": ");
    add_counters(line, shared);
    add(line, ", ");
    add_boot(line, about, shared);
    add(line, ", \"backend\": \"%s\", \"fault\": ", about->backend);
    if (event->registers_valid)
        add_fault(line, event);
    else
        add(line, "null");
    add(line, ", \"isolation\": ");
    add_isolation(line, about->isolation);
    add(line, ", \"error\": null");
}

DEBUG_SYMBOL LAST_IN_BSS struct report_line the_report_line;
DEBUG_ADDRESS("report_line", the_report_line);
DEBUG_NOTE(debug_facts_of_report)
{
    DEBUG_OFFSET("report_line_length", struct report_line, length);
    DEBUG_OFFSET("report_line_text", struct report_line, text);
    DEBUG_NUMBER("report_line_bytes", sizeof the_report_line.text);
}

size_t report_write(char to[REPORT_BYTES], const struct report_about *about, const struct told_exit *told,
                    const struct vm_event *event, const struct vm_shared *shared)
{
    struct line line = {to, to + REPORT_BYTES};
    add(&line, "{\"schema\": %d, \"image\": ", SCHEMA);
    add_text(&line, about->image);
    add(&line, ", \"signal\": ");
    if (about->signal)
        add(&line, "%d", about->signal);
    else
        add(&line, "null");
    add(&line, ", \"reason\": \"%s\", \"status\": %d, \"guest_status\": ", told->reason, told->status);
    if (!told->error && event->kind == EVENT_HALT)
        add(&line, "%d", event->status);
    else
        add(&line, "null");
    add(&line, ", \"message\": ");
    add_text(&line, told->message);
    if (told->error)
        add_error(&line, told);
    else
        add_run(&line, about, event, shared);
    add(&line, "}\n");
    return (size_t)(line.at - to);
}
