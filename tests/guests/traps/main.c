/*
 * Raises one CPU exception of each kind that a program can cause: the guest's own dump and status
 * 255.
 *
 *     traps --kind=divide | debug | breakpoint | opcode | protection | page | fetch | interrupt | simd |
 *                  double | nested | bare
 *
 * "simd" needs a CPU that raises #XM. QEMU's emulation (TCG) does not raise it, and the guest ends
 * with 99. "double" first breaks the usual trap stack (a double fault, on its own stack). "nested"
 * pretends to fault inside the handler (one line instead of a dump), "bare" one level deeper (no
 * text). All others hold known values in R12 to R15.
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

/* trap.c */
extern unsigned trap_depth;
extern struct {
    uint32_t reserved0;
    uint64_t rsp[3];
    uint64_t reserved1;
    uint64_t ist[7];
} __attribute__((packed)) trap_tss;

#define WITH_KNOWN_REGISTERS(instruction)                                                                    \
    __asm__ volatile("mov $0x1212121212121212, %%r12\n\t"                                                    \
                     "mov $0x1313131313131313, %%r13\n\t"                                                    \
                     "mov $0x1414141414141414, %%r14\n\t"                                                    \
                     "mov $0x1515151515151515, %%r15\n\t" instruction                                        \
                     :                                                                                       \
                     :                                                                                       \
                     : "rax", "rcx", "rdx", "r12", "r13", "r14", "r15", "memory", "cc")

int main(int argc, char **argv)
{
    const char *kind = args_value(argc, argv, "--kind=");
    kind = kind ? kind : "";
    if (strcmp(kind, "divide") == 0) {
        WITH_KNOWN_REGISTERS("xor %%ecx, %%ecx\n\tdiv %%ecx");
    } else if (strcmp(kind, "debug") == 0) {
        WITH_KNOWN_REGISTERS("pushf\n\torl $0x100, (%%rsp)\n\tpopf\n\tnop\n\tnop");
    } else if (strcmp(kind, "breakpoint") == 0) {
        WITH_KNOWN_REGISTERS("int3");
    } else if (strcmp(kind, "opcode") == 0) {
        WITH_KNOWN_REGISTERS("ud2");
    } else if (strcmp(kind, "protection") == 0) {
        WITH_KNOWN_REGISTERS("mov $0x8000000000000000, %%rax\n\tmov (%%rax), %%rax");
    } else if (strcmp(kind, "page") == 0) {
        WITH_KNOWN_REGISTERS("mov %%r12, 16");
    } else if (strcmp(kind, "fetch") == 0) {
        WITH_KNOWN_REGISTERS("mov $0x400000000, %%rax\n\tcall *%%rax");
    } else if (strcmp(kind, "interrupt") == 0) {
        WITH_KNOWN_REGISTERS("int $0x80");
    } else if (strcmp(kind, "simd") == 0) {
        WITH_KNOWN_REGISTERS("push $0x1d80\n\tldmxcsr (%%rsp)\n\tpop %%rax\n\tmov $1, %%eax\n\t"
                             "cvtsi2sd %%eax, %%xmm0\n\txorpd %%xmm1, %%xmm1\n\tdivsd %%xmm1, %%xmm0");
    } else if (strcmp(kind, "double") == 0) {
        trap_tss.ist[0] = 0x400001000;
        WITH_KNOWN_REGISTERS("ud2");
    } else if (strcmp(kind, "nested") == 0) {
        trap_depth = 1;
        WITH_KNOWN_REGISTERS("ud2");
    } else if (strcmp(kind, "bare") == 0) {
        trap_depth = 2;
        WITH_KNOWN_REGISTERS("ud2");
    } else {
        panic("traps: --kind=%s is not known", kind);
    }
    printf("NOT STOPPED\n");
    return 99;
}
