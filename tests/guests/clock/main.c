/*
 * Checks that monotonic time advances and agrees with wall-clock time, that wall-clock time is
 * after 2024, and that a poll waits as long as requested and not much longer. Prints what it
 * measured. "clock: OK" and status 0, or status 1.
 *
 *     clock [--slack-ms=N]      how late a wake may be; 500 by default
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

#define NS_PER_MS    1000000ULL
#define YEAR_2024_NS 1704067200000000000ULL

static bool failed;

static void expect(bool holds, const char *what)
{
    if (!holds) {
        printf("clock: FAILED %s\n", what);
        failed = true;
    }
}

static void check_poll(uint64_t timeout_ns, uint64_t slack_ns)
{
    uint64_t start = clock_monotonic(), elapsed;
    unsigned polls = 0;
    do { /* a poll may wake early */
        elapsed = clock_monotonic() - start;
        poll_wait(elapsed < timeout_ns ? timeout_ns - elapsed : 0, NULL);
        elapsed = clock_monotonic() - start;
        polls++;
    } while (elapsed < timeout_ns && polls < 1000);
    printf("clock: poll of %lu ns took %lu ns in %u calls\n", timeout_ns, elapsed, polls);
    expect(elapsed >= timeout_ns, "a poll never reached its time");
    expect(elapsed <= timeout_ns + slack_ns, "a poll was late");
    expect(polls < 100, "a poll woke early again and again");
}

static void check_monotonic(void)
{
    uint64_t last = clock_monotonic(), first = last;
    for (unsigned i = 0; i < 100000; i++) {
        uint64_t now = clock_monotonic();
        if (now < last) {
            expect(false, "monotonic time went back");
            return;
        }
        last = now;
    }
    printf("clock: 100000 readings took %lu ns\n", last - first);
    expect(last > first, "monotonic time stands still");
}

static void check_rate(uint64_t slack_ns)
{
    uint64_t wall_ns = clock_wall(), start = clock_monotonic();
    expect(wall_ns >= YEAR_2024_NS, "wall-clock time is before 2024");
    while (clock_monotonic() - start < 100 * NS_PER_MS) {
        poll_wait(20 * NS_PER_MS, NULL);
    }
    uint64_t wall_elapsed = clock_wall() - wall_ns, elapsed = clock_monotonic() - start;
    uint64_t apart = wall_elapsed > elapsed ? wall_elapsed - elapsed : elapsed - wall_elapsed;
    printf("clock: wall %lu ns, monotonic %lu ns in the same span\n", wall_elapsed, elapsed);
    expect(apart <= slack_ns, "the two clocks drift apart");
}

int main(int argc, char **argv)
{
    uint64_t slack_ms = 500;
    number_parse(args_value(argc, argv, "--slack-ms="), &slack_ms);
    uint64_t slack_ns = slack_ms * NS_PER_MS;
    printf("clock: counter %lu Hz, wall %lu ns, monotonic %lu ns\n", clock_tsc_hz(), clock_wall(),
           clock_monotonic());
    check_monotonic();
    check_poll(0, slack_ns);
    check_poll(NS_PER_MS, slack_ns);
    check_poll(20 * NS_PER_MS, slack_ns);
    check_rate(slack_ns);
    if (!failed) {
        printf("clock: OK\n");
    }
    return failed;
}
