/*
 * printf's formats, as far as this program's messages use them: %s %d %u %x, with a 0, a width and one or two
 * l. Any other character after a % is copied; our messages have none (tests/native/test_format.c).
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct out {
    char *to;
    size_t capacity, length; /* of the whole text, whether there is space for it or not */
};

static void put(struct out *out, char byte)
{
    if (out->length + 1 < out->capacity)
        out->to[out->length] = byte;
    out->length++;
}

static void put_number(struct out *out, uint64_t number, unsigned base, int width, char filler)
{
    char digits[20];
    int count = 0;
    do {
        digits[count++] = "0123456789abcdef"[number % base];
        number /= base;
    } while (number);
    for (; width > count; width--)
        put(out, filler);
    while (count)
        put(out, digits[--count]);
}

int vsnprintf(char *to, size_t capacity, const char *format, va_list arguments)
{
    struct out out = {to, capacity, 0};
    for (; *format; format++) {
        if (*format != '%') {
            put(&out, *format);
            continue;
        }
        char filler = ' ';
        int width = 0, longs = 0;
        if (*++format == '0')
            filler = '0';
        for (; *format >= '0' && *format <= '9'; format++)
            width = 10 * width + *format - '0';
        for (; *format == 'l'; format++)
            longs++;
        if (*format == 's') {
            for (const char *text = va_arg(arguments, const char *); *text; text++)
                put(&out, *text);
        } else if (*format == 'd') {
            const int64_t number = longs ? va_arg(arguments, int64_t) : va_arg(arguments, int);
            if (number < 0)
                put(&out, '-');
            put_number(&out, number < 0 ? -(uint64_t)number : (uint64_t)number, 10, width, filler);
        } else if (*format == 'u' || *format == 'x') {
            const uint64_t number = longs ? va_arg(arguments, uint64_t) : va_arg(arguments, unsigned);
            put_number(&out, number, *format == 'u' ? 10 : 16, width, filler);
        } else if (*format) {
            put(&out, *format);
        } else {
            break;
        }
    }
    if (capacity)
        to[out.length < capacity ? out.length : capacity - 1] = '\0';
    return (int)out.length;
}

int snprintf(char *to, size_t capacity, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const int length = vsnprintf(to, capacity, format, arguments);
    va_end(arguments);
    return length;
}

size_t strlen(const char *text)
{
    size_t length = 0;
    while (text[length])
        length++;
    return length;
}

int strcmp(const char *a, const char *b)
{
    for (; *a && *a == *b; a++)
        b++;
    return (unsigned char)*a - (unsigned char)*b;
}
