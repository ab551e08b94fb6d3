/*
 * Console output. Formatted text goes to a sink. The sink is either the caller's buffer (snprintf),
 * or a small buffer on the stack that is sent to the console each time it is full (printf). Nothing
 * is allocated, so a trap handler may print.
 */
#include "kernel.h"

void console_write(const void *data, size_t len)
{
    struct hvt_puts call = {.data = gpa_of(data), .len = len};
    gate_puts(&call);
}

struct sink {
    char *buffer;
    size_t size;  /* of the buffer */
    size_t used;  /* bytes in it */
    size_t total; /* bytes put so far, including those that did not fit */
    bool is_console;
};

static void sink_flush(struct sink *sink)
{
    if (sink->used) {
        console_write(sink->buffer, sink->used);
        sink->used = 0;
    }
}

static void sink_put(struct sink *sink, char c)
{
    if (sink->is_console && sink->used == sink->size) {
        sink_flush(sink);
    }
    if (sink->used < sink->size) {
        sink->buffer[sink->used++] = c;
    }
    sink->total++;
}

static void sink_repeat(struct sink *sink, char c, size_t count)
{
    while (count--) {
        sink_put(sink, c);
    }
}

static void sink_text(struct sink *sink, const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        sink_put(sink, text[i]);
    }
}

/* One conversion: %[flags][width][.precision][length]letter. */
struct spec {
    bool left, zero, plus, space, alternate;
    bool has_precision;
    size_t width, precision;
    unsigned arg_bytes; /* 1, 2, 4 or 8 */
    char letter;
};

#define WIDTH_MAX 4096 /* a greater width is a mistake of the caller */

static const char *number_read(const char *at, size_t *value)
{
    *value = 0;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (*value < WIDTH_MAX) {
            *value = *value * 10 + (size_t)(*at - '0');
        }
    }
    return at;
}

static const char *flags_read(const char *at, struct spec *spec)
{
    for (;; at++) {
        switch (*at) {
        case '-':
            spec->left = true;
            break;
        case '0':
            spec->zero = true;
            break;
        case '+':
            spec->plus = true;
            break;
        case ' ':
            spec->space = true;
            break;
        case '#':
            spec->alternate = true;
            break;
        default:
            return at;
        }
    }
}

static const char *length_read(const char *at, struct spec *spec)
{
    spec->arg_bytes = 4;
    if (at[0] == 'h') {
        spec->arg_bytes = at[1] == 'h' ? 1 : 2;
        return at + (at[1] == 'h' ? 2 : 1);
    }
    if (at[0] == 'l') {
        spec->arg_bytes = 8;
        return at + (at[1] == 'l' ? 2 : 1);
    }
    if (at[0] == 'z' || at[0] == 'j' || at[0] == 't') {
        spec->arg_bytes = 8;
        return at + 1;
    }
    return at;
}

/*
 * Reads a conversion; `at` is after the '%'. Returns the position after the letter. If the text
 * ends before the letter, returns the position of the final NUL.
 */
static const char *spec_read(const char *at, struct spec *spec)
{
    *spec = (struct spec){0};
    at = flags_read(at, spec);
    at = number_read(at, &spec->width);
    if (*at == '.') {
        spec->has_precision = true;
        at = number_read(at + 1, &spec->precision);
    }
    at = length_read(at, spec);
    spec->letter = *at;
    return *at ? at + 1 : at;
}

static void put_padded(struct sink *sink, const struct spec *spec, const char *text, size_t len)
{
    size_t pad = spec->width > len ? spec->width - len : 0;
    if (!spec->left) {
        sink_repeat(sink, ' ', pad);
    }
    sink_text(sink, text, len);
    if (spec->left) {
        sink_repeat(sink, ' ', pad);
    }
}

static void put_number(struct sink *sink, const struct spec *spec, uint64_t value, const char *sign,
                       unsigned base)
{
    char digits[20]; /* 2^64 - 1 in decimal */
    size_t count = 0;
    const char *alphabet = spec->letter == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
    for (; value; value /= base) {
        digits[count++] = alphabet[value % base];
    }

    size_t sign_len = strlen(sign);
    size_t wanted = spec->has_precision ? spec->precision : 1;
    size_t zeros = wanted > count ? wanted - count : 0;
    size_t len = sign_len + zeros + count;
    size_t pad = spec->width > len ? spec->width - len : 0;
    if (spec->zero && !spec->left && !spec->has_precision) {
        zeros += pad;
        pad = 0;
    }
    if (!spec->left) {
        sink_repeat(sink, ' ', pad);
    }
    sink_text(sink, sign, sign_len);
    sink_repeat(sink, '0', zeros);
    while (count) {
        sink_put(sink, digits[--count]);
    }
    if (spec->left) {
        sink_repeat(sink, ' ', pad);
    }
}

static uint64_t narrowed_unsigned(uint64_t value, unsigned bytes)
{
    return bytes == 1 ? (uint8_t)value : bytes == 2 ? (uint16_t)value : value;
}

static int64_t narrowed_signed(int64_t value, unsigned bytes)
{
    return bytes == 1 ? (int8_t)value : bytes == 2 ? (int16_t)value : value;
}

static void put_signed(struct sink *sink, const struct spec *spec, int64_t value)
{
    const char *sign = value < 0 ? "-" : spec->plus ? "+" : spec->space ? " " : "";
    put_number(sink, spec, value < 0 ? 0 - (uint64_t)value : (uint64_t)value, sign, 10);
}

static void format_text(struct sink *sink, const char *format, va_list *args)
{
    while (*format) {
        if (*format != '%') {
            sink_put(sink, *format++);
            continue;
        }
        struct spec spec;
        const char *start = format;
        format = spec_read(format + 1, &spec);
        switch (spec.letter) {
        case 'd':
        case 'i': {
            int64_t value = spec.arg_bytes == 8 ? va_arg(*args, int64_t) : va_arg(*args, int);
            put_signed(sink, &spec, narrowed_signed(value, spec.arg_bytes));
            break;
        }
        case 'u':
        case 'x':
        case 'X': {
            uint64_t value = spec.arg_bytes == 8 ? va_arg(*args, uint64_t) : va_arg(*args, unsigned);
            value = narrowed_unsigned(value, spec.arg_bytes);
            bool marked = spec.alternate && spec.letter != 'u' && value;
            const char *mark = !marked ? "" : spec.letter == 'X' ? "0X" : "0x";
            put_number(sink, &spec, value, mark, spec.letter == 'u' ? 10 : 16);
            break;
        }
        case 'p':
            put_number(sink, &spec, (uint64_t)(uintptr_t)va_arg(*args, void *), "0x", 16);
            break;
        case 'c': {
            char c = (char)va_arg(*args, int);
            put_padded(sink, &spec, &c, 1);
            break;
        }
        case 's': {
            const char *text = va_arg(*args, const char *);
            text = text ? text : "(null)";
            put_padded(sink, &spec, text, strnlen(text, spec.has_precision ? spec.precision : SIZE_MAX));
            break;
        }
        case '%':
            sink_put(sink, '%');
            break;
        default:
            sink_text(sink, start, (size_t)(format - start));
        }
    }
}

int vprintf(const char *format, va_list args)
{
    char buffer[512];
    struct sink sink = {.buffer = buffer, .size = sizeof(buffer), .is_console = true};
    va_list copy;
    va_copy(copy, args);
    format_text(&sink, format, &copy);
    va_end(copy);
    sink_flush(&sink);
    return (int)sink.total;
}

int printf(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int total = vprintf(format, args);
    va_end(args);
    return total;
}

int vsnprintf(char *to, size_t size, const char *format, va_list args)
{
    struct sink sink = {.buffer = to, .size = size ? size - 1 : 0};
    va_list copy;
    va_copy(copy, args);
    format_text(&sink, format, &copy);
    va_end(copy);
    if (size) {
        to[sink.used] = '\0';
    }
    return (int)sink.total;
}

int snprintf(char *to, size_t size, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int total = vsnprintf(to, size, format, args);
    va_end(args);
    return total;
}
