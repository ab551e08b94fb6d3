/*
 * Which machine a guest gets: what the check of the host finds, and the order of attempts. This
 * file replaces `stat`, which finds only the paths that a row names.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "holds.h"
#include "kvm_ops.h"
#include "lifecycle.h"

static const char *const *there; /* ends with NULL */

static int look_for(const char *path, void *about, size_t bytes)
{
    memset(about, 0, bytes);
    for (const char *const *known = there; *known; known++)
        if (strcmp(*known, path) == 0)
            return 0;
    errno = ENOENT;
    return -1;
}

int __wrap_stat(const char *path, struct stat *about);
int __wrap_stat(const char *path, struct stat *about)
{
    return look_for(path, about, sizeof *about);
}

int __wrap_stat64(const char *path, struct stat64 *about);
int __wrap_stat64(const char *path, struct stat64 *about)
{
    return look_for(path, about, sizeof *about);
}

#define DEVICE "/dev/kvm"
#define MODULE "/sys/module/kvm"

static const char *name_of(const struct machine_ops *ops)
{
    return ops ? ops->name : "none";
}

static bool is_chosen(struct machine_choice *choice, const struct machine_ops *asked,
                      struct machine_error *error, const char *name)
{
    return strcmp(name_of(machine_choose(choice, asked, error)), name) == 0;
}

/* Without a vendor's module KVM interprets guests. Without /sys, or on a kernel without modules,
 * only opening it shows whether it works. The rows with a vendor come last, because the check is
 * made once. */
static void test_a_kvm_without_a_vendors_module_is_not_tried(void)
{
    static const struct {
        const char *there[4], *expected, *first;
    } rows[] = {
        {{NULL}, "sandbox", "kvm"}, /* opening it gives a better reason */
        {{MODULE}, "sandbox", "kvm"},
        {{DEVICE}, "kvm", "kvm"},
        {{DEVICE, MODULE}, "sandbox", "sandbox"},
        {{DEVICE, MODULE, MODULE "_pvm"}, "sandbox", "sandbox"},
        {{DEVICE, MODULE, MODULE "_intel"}, "kvm", "kvm"},
        {{DEVICE, MODULE, MODULE "_amd"}, "kvm", "kvm"},
        {{MODULE, MODULE "_amd"}, "sandbox", "kvm"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct machine_choice choice = {0};
        struct machine_error error = {0};
        there = rows[i].there;
        HOLDS(strcmp(name_of(machine_expected(NULL)), rows[i].expected) == 0);
        HOLDS(is_chosen(&choice, NULL, &error, rows[i].first));
        const bool is_unfit = strcmp(rows[i].first, "sandbox") == 0;
        HOLDS((strncmp(choice.why, "/dev/kvm belongs to neither kvm_intel nor kvm_amd", 49) == 0) ==
              is_unfit);
        HOLDS((choice.notice[0] != '\0') == is_unfit);
    }
}

static const char *const nothing[] = {NULL};

static struct machine_error refusal(const char *code, const char *text)
{
    struct machine_error error = {0};
    (void)snprintf(error.code, sizeof error.code, "%s", code);
    (void)snprintf(error.text, sizeof error.text, "%s", text);
    return error;
}

static void test_another_machine_is_tried_where_this_host_lacks_the_first(void)
{
    struct machine_choice choice = {0};
    struct machine_error error = {0};
    there = nothing;
    HOLDS(is_chosen(&choice, NULL, &error, "kvm") && !choice.title && !choice.notice[0]);
    error = refusal("kvm-denied", "Permission denied");
    HOLDS(is_chosen(&choice, NULL, &error, "sandbox"));
    HOLDS(strcmp(choice.title, "KVM") == 0 && strcmp(choice.why, "Permission denied") == 0);
    HOLDS(strcmp(choice.notice,
                 "no usable KVM (Permission denied): the guest runs in the sandbox, a process behind "
                 "a system-call filter, which isolates less than a virtual machine") == 0);
    error = refusal("sandbox", "no processes");
    HOLDS(is_chosen(&choice, NULL, &error, "none"));
    HOLDS(strcmp(choice.why, "Permission denied") == 0 && strcmp(error.text, "no processes") == 0);
}

static void test_an_error_that_no_other_machine_avoids_is_final(void)
{
    static const char *const codes[] = {"memory", "tsc-unstable", "", "kv"};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        struct machine_choice choice = {0};
        struct machine_error error = {0};
        HOLDS(is_chosen(&choice, NULL, &error, "kvm"));
        error = refusal(codes[i], "no");
        HOLDS(is_chosen(&choice, NULL, &error, "none") && !choice.title);
    }
}

static void test_a_machine_that_is_asked_for_is_the_only_one_tried(void)
{
    for (const struct machine_ops *const *asked = machines; *asked; asked++) {
        struct machine_choice choice = {0};
        struct machine_error error = {0};
        HOLDS(machine_expected(*asked) == *asked);
        HOLDS(is_chosen(&choice, *asked, &error, (*asked)->name));
        error = refusal("kvm", "no");
        HOLDS(is_chosen(&choice, *asked, &error, "none") && !choice.title);
    }
}

int main(void)
{
    test_a_kvm_without_a_vendors_module_is_not_tried();
    test_another_machine_is_tried_where_this_host_lacks_the_first();
    test_an_error_that_no_other_machine_avoids_is_final();
    test_a_machine_that_is_asked_for_is_the_only_one_tried();
    return claims_end();
}
