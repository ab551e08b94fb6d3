/* Prints its raw command line between '<' and '>', then one line per word: "0: word". Status: the
 * number of words. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

int main(int argc, char **argv)
{
    console_write("<", 1);
    console_write(guest_cmdline(), strlen(guest_cmdline())); /* the monitor's own low memory, not a copy */
    console_write(">\n", 2);
    for (int i = 0; i < argc; i++) {
        printf("%d: %s\n", i, argv[i]);
    }
    return argc;
}
