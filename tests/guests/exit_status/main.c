/* Ends with the status of its first argument: by guest_exit(), or with --return by returning the
 * status. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

int main(int argc, char **argv)
{
    uint64_t status = 0;
    if (argc < 1 || !number_parse(argv[0], &status)) {
        panic("exit_status: the first argument must be a number");
    }
    if (args_has(argc, argv, "--return")) {
        return (int)status;
    }
    guest_exit((int)status);
}
