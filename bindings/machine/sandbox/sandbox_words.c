/* The sandbox's messages: for the process that holds a VM, and for a program that reports its own end. */
#include "config.h"
#include "machine.h"
#include "says.h"
#include "words.h"

#define NAMESPACES_CURE(doctor)                                                                              \
    "the host must allow user namespaces: a sysctl or the container's profile forbids them; `" doctor "` "   \
    "names which"
#define NAMESPACES_CURES EACH(NAMESPACES_CURE("tender doctor"), NAMESPACES_CURE("tender doctor --sandbox"))

static const char *const cures[ISOLATION_LAYERS][2] = {
    NAMESPACES_CURES,
    NAMESPACES_CURES,
    NAMESPACES_CURES,
    NAMESPACES_CURES,
    NAMESPACES_CURES,
    BOTH("it needs a mount namespace, and /proc mounted"),
    BOTH(LANDLOCK_CURE),
    BOTH("the kernel must have CONFIG_SECCOMP_FILTER"),
    BOTH("start tender as another user than root, or with CAP_SETUID, CAP_SETGID and CAP_KILL"),
    BOTH("the inherited seccomp filter must allow capset()"),
    EACH("the guest is in the sandbox: use backend=\"kvm\"; `tender doctor` names what it lacks",
         "the guest is in the sandbox: use --backend=kvm; `tender doctor --kvm` names what it lacks"),
};

const struct machine_words sandbox_words = {
    .title = "sandbox",
    .run_call = "ppoll",
    .instead =
        "the guest runs in the sandbox, a process behind a system-call filter, which isolates less than "
        "a virtual machine",
    .cures = cures,
};
