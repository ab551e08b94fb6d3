/*
 * Makes one console request of 1 MiB: 16384 lines of 64 bytes. Line i consists of i as five digits,
 * a space, 57 letters of which letter j is 'a' + (i + j) % 26, and a newline. Prints nothing else.
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

#define LINES      16384
#define LINE_BYTES 64

static char text[LINES * LINE_BYTES + 1]; /* snprintf's NUL */

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    for (unsigned i = 0; i < LINES; i++) {
        char *line = text + (size_t)i * LINE_BYTES;
        snprintf(line, 7, "%05u ", i);
        for (unsigned j = 0; j < 57; j++) {
            line[6 + j] = (char)('a' + (i + j) % 26);
        }
        line[63] = '\n';
    }
    console_write(text, LINES * LINE_BYTES);
    return 0;
}
