/* The request to stop a VM, and the size of the files that it writes; vm.h has the contract. */
#include "vm.h"

#include <sys/stat.h>
#include <unistd.h>

#include "device_ops.h"

uint64_t vm_largest_file(const struct vm *vm)
{
    struct stat about;
    uint64_t largest = 0;
    if (vm->console.fd >= 0 && fstat(vm->console.fd, &about) == 0 && S_ISREG(about.st_mode))
        return UINT64_MAX;
    for (uint32_t i = 0; i < vm->device_end; i++) {
        const uint64_t bytes = device_places(&vm->devices[i]).bytes;
        largest = bytes > largest ? bytes : largest;
    }
    return largest;
}

void vm_stop(struct vm *vm)
{
    atomic_store(&vm->stop_requested, true);
    const uint64_t one = 1;
    (void)!write(vm->stop_fd, &one, sizeof one); /* EAGAIN: it is readable already */
    if (vm->kick)
        vm->kick(vm);
}
