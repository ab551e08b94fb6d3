/* A panic names the capacity and the values: "ABORT: net: ring index 1025 past 1024" and status 255. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    panic("net: ring index %u past %u", 1025U, 1024U);
}
