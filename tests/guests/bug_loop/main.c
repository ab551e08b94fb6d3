/*
 * A planted bug for docs/debugging.md: puts its arguments into a queue of jobs and works them off. With a job
 * that is given twice it never ends, and prints nothing.
 *
 *     bug_loop.elf JOB...      prints each JOB once, in the order of their names
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

struct job {
    struct job *next;
    const char *name;
};

static struct job jobs[16];
static struct job *first;

static struct job *job_named(const char *name)
{
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
        if (!jobs[i].name)
            jobs[i].name = name;
        if (!strcmp(jobs[i].name, name))
            return &jobs[i];
    }
    return NULL;
}

static __attribute__((noinline)) void queue_insert(struct job *job)
{
    struct job **at = &first;
    while (*at && strcmp((*at)->name, job->name) < 0)
        at = &(*at)->next;
    job->next = *at;
    *at = job;
}

static __attribute__((noinline)) unsigned queue_length(void)
{
    unsigned length = 0;
    for (const struct job *job = first; job; job = job->next)
        length++;
    return length;
}

int main(int argc, char **argv)
{
    for (int i = 0; i < argc && i < 16; i++)
        queue_insert(job_named(argv[i]));
    printf("jobs: %u\n", queue_length());
    for (const struct job *job = first; job; job = job->next)
        printf("%s\n", job->name);
    return 0;
}
