/*
 * A planted bug for docs/debugging.md: keeps a log of its arguments in small heap blocks. The heap finds,
 * much later than it happened, that a header between two blocks was overwritten.
 *
 *     bug_heap.elf WORD...     prints the log; a word of more than 31 letters breaks the heap
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

#define LINE_BYTES 24

struct line {
    char text[LINE_BYTES];
};

static struct line *lines[16];
static unsigned count;

static void log_reserve(int wanted)
{
    while (wanted-- > 0 && count < sizeof lines / sizeof *lines)
        lines[count++] = guest_alloc(sizeof(struct line));
}

static __attribute__((noinline)) void log_write(struct line *line, const char *word)
{
    char *to = line->text;
    do
        *to++ = *word;
    while (*word++);
}

static __attribute__((noinline)) void log_free(void)
{
    while (count)
        guest_free(lines[--count]);
}

int main(int argc, char **argv)
{
    log_reserve(argc);
    for (unsigned i = 0; i < count; i++)
        log_write(lines[i], argv[i]);
    for (unsigned i = 0; i < count; i++)
        printf("%s\n", lines[i]->text);
    log_free();
    printf("end\n");
    return 0;
}
