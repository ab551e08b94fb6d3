/* Writes to the console forever, 64 KiB per request: lines of 63 'f' and a newline. With an
 * argument: only newlines. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

static char chunk[65536];

int main(int argc, char **argv)
{
    (void)argv;
    memset(chunk, argc > 1 ? '\n' : 'f', sizeof(chunk));
    for (size_t i = 63; i < sizeof(chunk); i += 64) {
        chunk[i] = '\n';
    }
    for (;;) {
        console_write(chunk, sizeof(chunk));
    }
}
