/*
 * The acceptance rules of ELFs and the start state, rule by rule, on ELFs made in memory.
 *
 * Each case is one line: the field of a valid file that is changed, and the words of the refusal
 * (or that the file is accepted). Prints one TAP line for each check and exits with 1 if one fails.
 * Needs no KVM and no privileges.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create */
#endif

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "elf_image.h"
#include "start_state.h"
#include "tender_note.h"

#define MIB 0x100000ULL
#define GIB 0x40000000ULL

enum { ABI, MFT, TEXT, DATA, EMPTY, BSS, SPARE, PHDRS };

/* A whole file, as it is on the disk. */
struct test_elf {
    Elf64_Ehdr header;
    Elf64_Phdr phdr[PHDRS];
    struct tender_note_header abi_header;
    struct hvt_abi_info abi;
    uint8_t abi_rest[20];
    struct tender_note_header mft_header;
    uint32_t mft_padding;
    struct mft mft;
    struct tender_note_header extension_header;
    struct tender_extension_info extension;
    uint8_t extension_rest[52];
    uint8_t text[4096];
    uint8_t data[8192];
};

_Static_assert(offsetof(struct test_elf, mft) == offsetof(struct test_elf, mft_header) + 24, "as in a file");
_Static_assert(sizeof(struct test_elf) == offsetof(struct test_elf, data) + 8192, "the data end the file");

static unsigned checks;
static unsigned failures;

static void check(bool holds, const char *claim, const char *detail)
{
    checks++;
    if (!holds)
        failures++;
    printf("%s %u - %s%s%s\n", holds ? "ok" : "not ok", checks, claim, holds ? "" : " # ",
           holds ? "" : detail);
}

#define HOLDS(expression) check((expression), #expression, "does not hold")

static void set_devices(struct test_elf *e, uint32_t devices)
{
    memset(&e->mft, 0, sizeof e->mft);
    e->mft.version = MFT_VERSION;
    e->mft.entries = devices + 1;
    e->mft.e[0].type = MFT_RESERVED_FIRST;
    for (uint32_t i = 1; i <= devices; i++) {
        (void)snprintf(e->mft.e[i].name, MFT_NAME_BYTES, "service%u", i - 1);
        e->mft.e[i].type = i % 2 == 1 ? MFT_NET_BASIC : MFT_BLOCK_BASIC;
    }
    e->mft_header.descsz = (uint32_t)(12 + sizeof(struct mft_entry) * (devices + 1));
    e->phdr[MFT].p_filesz = sizeof e->mft_header + e->mft_header.descsz;
}

static Elf64_Phdr load(uint64_t offset, uint64_t vaddr, uint64_t bytes, uint32_t flags)
{
    return (Elf64_Phdr){.p_type = PT_LOAD,
                        .p_flags = flags,
                        .p_offset = offset,
                        .p_vaddr = vaddr,
                        .p_filesz = bytes,
                        .p_memsz = bytes,
                        .p_align = 0x1000};
}

/* Text at 1 MiB, data after it, an empty PT_LOAD at 0, and 4 KiB of bss: like the files of the
 * toolchains. */
static void make_good(struct test_elf *e)
{
    memset(e, 0, sizeof *e);
    memcpy(e->header.e_ident, ELFMAG, SELFMAG);
    e->header.e_ident[EI_CLASS] = ELFCLASS64;
    e->header.e_ident[EI_DATA] = ELFDATA2LSB;
    e->header.e_type = ET_EXEC;
#if defined(__aarch64__)
    e->header.e_machine = EM_AARCH64;
#else
    e->header.e_machine = EM_X86_64;
#endif
    e->header.e_version = EV_CURRENT;
    e->header.e_entry = MIB + 0x20;
    e->header.e_phoff = offsetof(struct test_elf, phdr);
    e->header.e_ehsize = sizeof(Elf64_Ehdr);
    e->header.e_phentsize = sizeof(Elf64_Phdr);
    e->header.e_phnum = PHDRS;

    e->phdr[ABI].p_type = PT_NOTE;
    e->phdr[ABI].p_offset = offsetof(struct test_elf, abi_header);
    e->phdr[ABI].p_filesz = 20 + 16;
    e->abi_header = (struct tender_note_header){6, 16, HVT_NOTE_ABI_TYPE, "Solo5"};
    e->abi = (struct hvt_abi_info){HVT_ABI_TARGET_HVT, HVT_ABI_VERSION, 0, 0};

    e->phdr[MFT].p_type = PT_NOTE;
    e->phdr[MFT].p_offset = offsetof(struct test_elf, mft_header);
    e->mft_header = (struct tender_note_header){6, 0, HVT_NOTE_MFT_TYPE, "Solo5"};
    set_devices(e, 2);

    e->phdr[TEXT] = load(offsetof(struct test_elf, text), MIB, 4096, PF_X);
    e->phdr[DATA] = load(offsetof(struct test_elf, data), MIB + 0x1000, 0x120, PF_R | PF_W);
    e->phdr[EMPTY] = load(0, 0, 0, PF_R);
    e->phdr[BSS] = load(0, MIB + 0x2000, 0, PF_R | PF_W);
    e->phdr[BSS].p_memsz = 0x1000;
    memset(e->text, 0xf4, sizeof e->text);
    memset(e->data, 0xda, sizeof e->data);
}

/* Adds our note, in the last program header, which is otherwise empty. */
static void add_extension(struct test_elf *e)
{
    e->phdr[SPARE].p_type = PT_NOTE;
    e->phdr[SPARE].p_offset = offsetof(struct test_elf, extension_header);
    e->phdr[SPARE].p_filesz = 20 + 16;
    e->extension_header = (struct tender_note_header){7, 16, 0x31444e54, "Tender"};
    e->extension = (struct tender_extension_info){1, 1, 0, 0};
}

static int parse_bytes(const void *bytes, size_t size, struct elf_image *image, struct elf_error *error)
{
    struct byte_source source = byte_source_memory(bytes, size);
    return elf_image_parse(&source, image, error);
}

static void check_refused(const char *claim, const void *bytes, size_t size, int code, const char *words)
{
    static struct elf_image image;
    struct elf_error error;
    int result = parse_bytes(bytes, size, &image, &error);

    check(result == -1 && error.code == code && strstr(error.text, words) != NULL, claim,
          result == 0 ? "accepted" : error.text);
}

static void check_accepted(const char *claim, const void *bytes, size_t size)
{
    static struct elf_image image;
    struct elf_error error;
    int result = parse_bytes(bytes, size, &image, &error);

    check(result == 0 && error.code == ELF_OK, claim, error.text);
}

#define REFUSED(code, words, ...)                                                                            \
    do {                                                                                                     \
        static struct test_elf e;                                                                            \
        make_good(&e);                                                                                       \
        __VA_ARGS__;                                                                                         \
        check_refused("refused: " #__VA_ARGS__, &e, sizeof e, code, words);                                  \
    } while (0)

#define ACCEPTED(...)                                                                                        \
    do {                                                                                                     \
        static struct test_elf e;                                                                            \
        make_good(&e);                                                                                       \
        __VA_ARGS__;                                                                                         \
        check_accepted("accepted: " #__VA_ARGS__, &e, sizeof e);                                             \
    } while (0)

static void test_header(void)
{
    static const char *const words =
        "invalid executable: invalid or unsupported executable (elf header invalid while loading note)";

    ACCEPTED((void)0);
    REFUSED(ELF_BAD_FILE, words, e.header.e_ident[EI_MAG0] = 0);
    REFUSED(ELF_BAD_FILE, words, e.header.e_ident[EI_MAG3] = 'G');
    REFUSED(ELF_BAD_FILE, words, e.header.e_ident[EI_CLASS] = ELFCLASS32);
    REFUSED(ELF_BAD_FILE, words, e.header.e_ident[EI_DATA] = ELFDATA2MSB);
    REFUSED(ELF_BAD_FILE, words, e.header.e_version = 0);
    REFUSED(ELF_BAD_FILE, words, e.header.e_version = 2);
    REFUSED(ELF_BAD_FILE, words, e.header.e_ehsize = 63);
    REFUSED(ELF_BAD_FILE, words, e.header.e_phnum = 0);
    REFUSED(ELF_BAD_MANIFEST, "No Solo5 manifest found",
            e.header.e_phnum = 1); /* enough headers for the table to be read */
    REFUSED(ELF_BAD_FILE, words, e.header.e_phentsize = 32);
    REFUSED(ELF_BAD_FILE, words, e.header.e_type = ET_DYN);
    REFUSED(ELF_BAD_FILE, words, e.header.e_type = ET_REL);
    REFUSED(ELF_BAD_FILE, words, e.header.e_machine = EM_386);
    REFUSED(ELF_BAD_FILE, words,
            e.header.e_machine = e.header.e_machine == EM_X86_64 ? EM_AARCH64 : EM_X86_64);

    ACCEPTED(e.header.e_ident[EI_OSABI] = 255);
    ACCEPTED(e.header.e_ident[EI_ABIVERSION] = 255);
    ACCEPTED(e.header.e_ident[EI_VERSION] = 0);
    ACCEPTED(e.header.e_flags = 0xffffffff);
    ACCEPTED(e.header.e_shoff = UINT64_MAX, e.header.e_shnum = 0xffff, e.header.e_shentsize = 1);

    REFUSED(ELF_BAD_FILE, "program header does not match the expected size", e.header.e_phoff = UINT64_MAX);
    REFUSED(ELF_BAD_FILE, "program header does not match the expected size", e.header.e_phnum = 0xffff);
    REFUSED(ELF_BAD_FILE, "program header does not match the expected size",
            e.header.e_phoff = sizeof e - 391);

    static struct test_elf e;
    make_good(&e);
    check_refused("refused: no bytes", &e, 0, ELF_BAD_FILE,
                  "elf header does not match the expected size (0 != 64)");
    check_refused("refused: 63 bytes", &e, 63, ELF_BAD_FILE,
                  "invalid executable: elf header does not match the expected size (63 != 64)");
    check_refused("refused: nothing but a header", &e, 64, ELF_BAD_FILE,
                  "program header does not match the expected size (0 != 392 while loading note)");
    check_refused("refused: half a table", &e, 64 + 100, ELF_BAD_FILE,
                  "program header does not match the expected size (100 != 392 while loading note)");
}

static void test_entry(void)
{
    static const char *const words =
        "invalid executable: e_entry does not fall within the memory allocation range";

    REFUSED(ELF_BAD_FILE, words, e.header.e_entry = 0);
    REFUSED(ELF_BAD_FILE, words, e.header.e_entry = MIB - 1);
    ACCEPTED(e.header.e_entry = MIB);
    ACCEPTED(e.header.e_entry = 4 * GIB - 1);
    REFUSED(ELF_BAD_FILE, words, e.header.e_entry = 4 * GIB);
    REFUSED(ELF_BAD_FILE, words, e.header.e_entry = UINT64_MAX);
}

static void test_segments(void)
{
    /* 1 */
    REFUSED(ELF_BAD_FILE,
            "invalid executable: phdr[2].p_vaddr outside of valid memory range (1048575 < 1048576)",
            e.phdr[TEXT].p_vaddr = MIB - 1);
    REFUSED(ELF_BAD_FILE, "phdr[2].p_vaddr outside of valid memory range", e.phdr[TEXT].p_vaddr = 0);
    /* 2 */
    REFUSED(ELF_BAD_FILE, "phdr[3].p_vaddr is not in ascending order", e.phdr[TEXT].p_vaddr = MIB + 0x4000);
    /* 3 */
    REFUSED(ELF_BAD_FILE, "phdr[2].p_vaddr is outside of memory range (align_down", e.phdr[TEXT].p_align = 0);
    REFUSED(ELF_BAD_FILE, "phdr[2].p_vaddr is outside of memory range (align_down", e.phdr[TEXT].p_align = 3);
    REFUSED(ELF_BAD_FILE, "phdr[2].p_vaddr is outside of memory range (align_down",
            e.phdr[TEXT].p_align = UINT64_MAX);
    /* 4 */
    REFUSED(ELF_BAD_FILE, "phdr[2].p_vaddr_start is outside of memory range", e.phdr[TEXT].p_align = 2 * MIB);
    REFUSED(ELF_BAD_FILE, "phdr[2].p_vaddr_start is outside of memory range",
            e.phdr[TEXT].p_align = 1ULL << 63);
    ACCEPTED(e.phdr[TEXT].p_align = MIB, e.phdr[DATA].p_vaddr = 2 * MIB);
    /* 5 */
    REFUSED(ELF_BAD_FILE, "phdr[3].p_vaddr_start is outside of memory range (1048576 < 1052672 (e_end))",
            e.phdr[DATA].p_vaddr = MIB + 0xfff);
    REFUSED(ELF_BAD_FILE, "(e_end)", e.phdr[DATA].p_vaddr = MIB);
    REFUSED(ELF_BAD_FILE, "(e_end)", e.phdr[TEXT].p_memsz = 4097);
    REFUSED(ELF_BAD_FILE, "(e_end)", e.phdr[TEXT].p_align = MIB); /* rounds its end up to 2 MiB */
    REFUSED(ELF_BAD_FILE, "(e_end)", e.phdr[SPARE] = e.phdr[DATA]);
    /* 6 */
    REFUSED(ELF_BAD_FILE, "phdr[3] program file segment falls outside of valid range (4294967296 >=",
            e.phdr[DATA].p_vaddr = 4 * GIB);
    REFUSED(ELF_BAD_FILE, "program file segment falls outside of valid range",
            e.phdr[DATA].p_vaddr = UINT64_MAX - 0xfff);
    REFUSED(ELF_BAD_FILE, "program file segment falls outside of valid range",
            e.phdr[DATA].p_filesz = UINT64_MAX);
    REFUSED(ELF_BAD_FILE, "(p_vaddr + p_filesz) > 4294967296", e.phdr[DATA].p_filesz = 4 * GIB);
    /* 7 */
    REFUSED(ELF_BAD_FILE, "phdr[3] program memory segment falls outside of valid range (287 (p_memsz) < 288",
            e.phdr[DATA].p_memsz = 0x11f);
    REFUSED(ELF_BAD_FILE, "program memory segment falls outside of valid range",
            e.phdr[DATA].p_memsz = UINT64_MAX);
    REFUSED(ELF_BAD_FILE, "program memory segment falls outside of valid range",
            e.phdr[DATA].p_memsz = UINT64_MAX - (MIB + 0x1000)); /* rounding up overflows */
    REFUSED(ELF_BAD_FILE, "program memory segment falls outside of valid range",
            e.phdr[DATA].p_memsz = 4 * GIB - (MIB + 0x1000) + 1);
    ACCEPTED(e.phdr[DATA].p_memsz = 4 * GIB - (MIB + 0x1000));
    REFUSED(ELF_BAD_FILE, "program memory segment falls outside of valid range", /* 4 GiB after rounding */
            e.phdr[DATA].p_vaddr = 3 * GIB, e.phdr[DATA].p_align = GIB, e.phdr[DATA].p_memsz = GIB + 1);
    /* 9 */
    ACCEPTED(e.phdr[DATA].p_filesz = e.phdr[DATA].p_memsz = sizeof e.data);
    REFUSED(ELF_BAD_FILE, "phdr[3] host file segment mismatched",
            e.phdr[DATA].p_filesz = e.phdr[DATA].p_memsz = sizeof e.data + 1);
    REFUSED(ELF_BAD_FILE, "phdr[2] host file segment mismatched", e.phdr[TEXT].p_offset = UINT64_MAX);
    REFUSED(ELF_BAD_FILE, "phdr[2] host file segment mismatched", e.phdr[TEXT].p_offset = UINT64_MAX - 4094);
    REFUSED(ELF_BAD_FILE, "phdr[2] host file segment mismatched", e.phdr[TEXT].p_offset = INT64_MAX);
    /* 10 */
    REFUSED(ELF_BAD_FILE, "phdr[3] p_vaddr_start not aligned with architectural page size",
            e.phdr[DATA].p_vaddr += 8, e.phdr[DATA].p_align = 8);
    REFUSED(ELF_BAD_FILE, "phdr[3] p_vaddr_end not aligned", e.phdr[DATA].p_align = 8);
    ACCEPTED(e.phdr[TEXT].p_align = 1); /* both ends happen to be at a page */
    /* 11 */
    REFUSED(ELF_BAD_FILE, "invalid executable: phdr[2] requests WRITE and EXEC permissions",
            e.phdr[TEXT].p_flags = PF_W | PF_X);
    REFUSED(ELF_BAD_FILE, "requests WRITE and EXEC permissions", e.phdr[DATA].p_flags = 0xffffffff);
    ACCEPTED(e.phdr[DATA].p_flags = 0);
    ACCEPTED(e.phdr[DATA].p_flags = ~(uint32_t)PF_X);

    /* In one segment, an earlier rule takes precedence over a later one. */
    REFUSED(ELF_BAD_FILE, "p_vaddr outside of valid memory range", e.phdr[TEXT].p_vaddr = 0,
            e.phdr[TEXT].p_align = 3, e.phdr[TEXT].p_flags = PF_W | PF_X);
    REFUSED(ELF_BAD_FILE, "host file segment mismatched", e.phdr[TEXT].p_offset = UINT64_MAX,
            e.phdr[TEXT].p_flags = PF_W | PF_X);

    /* Not congruent modulo the page, other types, no loadable segment at all: no rule refuses these. */
    ACCEPTED(e.phdr[TEXT].p_offset -= 1);
    ACCEPTED(e.phdr[SPARE].p_type = PT_INTERP, e.phdr[SPARE].p_filesz = UINT64_MAX);
    ACCEPTED(e.phdr[SPARE].p_type = PT_TLS, e.phdr[SPARE].p_vaddr = UINT64_MAX);
    ACCEPTED(e.phdr[SPARE].p_type = PT_GNU_STACK, e.phdr[SPARE].p_flags = PF_W | PF_X);
    ACCEPTED(e.phdr[TEXT].p_type = e.phdr[DATA].p_type = PT_NULL);
}

static void test_bss(void)
{
    ACCEPTED(e.phdr[BSS].p_memsz = 0, e.phdr[BSS].p_vaddr = UINT64_MAX);
    ACCEPTED(e.phdr[BSS].p_memsz = 4 * GIB - (MIB + 0x2000));
    ACCEPTED(e.phdr[BSS].p_align = 3); /* not used */
    /* Over the text: the guest's own decision, nothing is loaded there. */
    ACCEPTED(e.phdr[BSS].p_vaddr = MIB);
    REFUSED(ELF_BAD_FILE, "phdr[5] program memory segment falls outside of valid range",
            e.phdr[BSS].p_memsz = 4 * GIB - (MIB + 0x2000) + 1);
    REFUSED(ELF_BAD_FILE, "phdr[5] program memory segment falls outside of valid range",
            e.phdr[BSS].p_vaddr = UINT64_MAX);
    REFUSED(ELF_BAD_FILE, "phdr[5] program memory segment falls outside of valid range",
            e.phdr[BSS].p_memsz = UINT64_MAX);
    REFUSED(ELF_BAD_FILE, "phdr[4].p_vaddr outside of valid memory range", e.phdr[EMPTY].p_memsz = 1);
    REFUSED(ELF_BAD_FILE, "phdr[5].p_vaddr outside of valid memory range",
            e.phdr[BSS].p_vaddr = MIB - 0x1000);
}

static void test_abi_note(void)
{
    static const char *const missing = "No Solo5 ABI information found in executable";
    static const char *const size = "invalid executable: phdr[0] note does not fall within valid size";

    REFUSED(ELF_BAD_ABI, missing, e.phdr[ABI].p_type = PT_NULL);
    REFUSED(ELF_BAD_ABI, missing, e.abi_header.namesz = 5);
    REFUSED(ELF_BAD_ABI, missing, e.abi_header.namesz = 8);
    REFUSED(ELF_BAD_ABI, missing, e.abi_header.name[0] = 's');
    REFUSED(ELF_BAD_ABI, missing, e.abi_header.name[5] = 'x');
    ACCEPTED(e.abi_header.name[6] = 'x', e.abi_header.name[7] = 'x'); /* padding of the name */
    REFUSED(ELF_BAD_ABI, missing, e.abi_header.type = HVT_NOTE_MFT_TYPE);
    REFUSED(ELF_BAD_ABI, missing, e.phdr[ABI].p_filesz = 12);
    REFUSED(ELF_BAD_ABI, missing, e.phdr[ABI].p_filesz = 19);
    REFUSED(ELF_BAD_NOTE,
            "invalid executable: phdr[0].p_filesz note does not fall within valid size (11 < 12)",
            e.phdr[ABI].p_filesz = 11);
    REFUSED(ELF_BAD_NOTE, "phdr[0].p_filesz note does not fall within valid size (0 < 12)",
            e.phdr[ABI].p_filesz = 0);
    REFUSED(ELF_BAD_NOTE, size, e.phdr[ABI].p_filesz = 20);
    REFUSED(ELF_BAD_NOTE, size, e.phdr[ABI].p_filesz = 20 + 15);
    ACCEPTED(e.phdr[ABI].p_filesz = UINT64_MAX);
    REFUSED(ELF_BAD_NOTE, size, e.abi_header.descsz = 0);
    REFUSED(ELF_BAD_NOTE, size, e.abi_header.descsz = 33, e.phdr[ABI].p_filesz = 53);
    REFUSED(ELF_BAD_NOTE, size, e.abi_header.descsz = UINT32_MAX, e.phdr[ABI].p_filesz = UINT64_MAX);
    ACCEPTED(e.abi_header.descsz = 32, e.phdr[ABI].p_filesz = 52);
    ACCEPTED(e.abi_header.descsz = 8);
    REFUSED(ELF_BAD_NOTE, "phdr[0] note does not fall within valid size (7 < 8)", e.abi_header.descsz = 7);
    REFUSED(ELF_BAD_NOTE, "phdr[0] bytes read mismatches note size (0 != 20)",
            e.phdr[ABI].p_offset = UINT64_MAX);
    REFUSED(ELF_BAD_NOTE, "phdr[0] bytes read mismatches note size (19 != 20)",
            e.phdr[ABI].p_offset = sizeof e - 19);
    REFUSED(ELF_BAD_NOTE, "phdr[0] bytes read mismatches note size (15 != 16)",
            memcpy((uint8_t *)&e + sizeof e - 35, &e.abi_header, 35), e.phdr[ABI].p_offset = sizeof e - 35);

    ACCEPTED(e.abi.version = 1);
    REFUSED(ELF_BAD_ABI, "Executable requests unsupported ABI version 0", e.abi.version = 0);
    REFUSED(ELF_BAD_ABI, "Executable requests unsupported ABI version 3", e.abi.version = 3);
    REFUSED(ELF_BAD_ABI, "Executable requests unsupported ABI version 4294967295",
            e.abi.version = UINT32_MAX);
    ACCEPTED(e.abi.reserved0 = e.abi.reserved1 = UINT32_MAX);
    REFUSED(ELF_BAD_ABI, "Executable is not for the solo5-hvt target (it is for spt)", e.abi.target = 2);
    REFUSED(ELF_BAD_ABI, "Executable is not for the solo5-hvt target (it is for virtio)", e.abi.target = 3);
    REFUSED(ELF_BAD_ABI, "Executable is not for the solo5-hvt target (it is for muen)", e.abi.target = 4);
    REFUSED(ELF_BAD_ABI, "Executable is not for the solo5-hvt target (it is for genode)", e.abi.target = 5);
    REFUSED(ELF_BAD_ABI, "Executable is not for the solo5-hvt target (it is for xen)", e.abi.target = 6);
    REFUSED(ELF_BAD_ABI, "Executable is not for the solo5-hvt target (it is for unknown target 0)",
            e.abi.target = 0);
    REFUSED(ELF_BAD_ABI, "Executable is not for the solo5-hvt target (it is for unknown target 7)",
            e.abi.target = 7);

    /* The first match is used, and nothing after it is checked. */
    ACCEPTED(e.phdr[SPARE] = e.phdr[ABI], e.phdr[SPARE].p_filesz = 1);
    REFUSED(ELF_BAD_NOTE, "phdr[0].p_filesz note does not", e.phdr[SPARE] = e.phdr[ABI],
            e.phdr[ABI].p_filesz = 1);
    /* Target before version, notes before segments, ABI before manifest. */
    REFUSED(ELF_BAD_ABI, "Executable is not for", e.abi.target = 2, e.abi.version = 9);
    REFUSED(ELF_BAD_ABI, "unsupported ABI version", e.abi.version = 9, e.mft.version = 9);
    REFUSED(ELF_BAD_ABI, "unsupported ABI version", e.abi.version = 9, e.header.e_entry = 0);
}

static void test_manifest_note(void)
{
    static const char *const invalid = "Solo5 manifest is invalid";
    static const char *const size = "phdr[1] note does not fall within valid size";

    REFUSED(ELF_BAD_MANIFEST, "No Solo5 manifest found in executable", e.phdr[MFT].p_type = PT_NULL);
    REFUSED(ELF_BAD_NOTE, size, e.mft_header.descsz = 0);
    for (uint32_t descsz = 1; descsz <= 4; descsz++)
        REFUSED(ELF_BAD_NOTE, "INV_EXE: phdr[1] note does not fall within valid size (",
                e.mft_header.descsz = descsz);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft_header.descsz = 5);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft_header.descsz = 4 + 8);
    REFUSED(ELF_BAD_NOTE, size, e.mft_header.descsz = 6669, e.phdr[MFT].p_filesz = 20 + 6669);
    REFUSED(ELF_BAD_NOTE, size, e.phdr[MFT].p_filesz -= 1);
    REFUSED(ELF_BAD_NOTE, "phdr[1] bytes read mismatches note size", e.phdr[MFT].p_offset = UINT64_MAX - 10);
    ACCEPTED(e.mft_padding = UINT32_MAX);

    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.version = 0);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.version = 2);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.entries = 0);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.entries = 2); /* the size is that of 3 entries */
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.entries = 4);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.entries = UINT32_MAX);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.entries = 65);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft_header.descsz += 1, e.phdr[MFT].p_filesz += 1);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft_header.descsz -= 1);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.e[0].type = MFT_NET_BASIC);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.e[0].name[0] = 'a');
    ACCEPTED(e.mft.e[0].name[1] = 'a');
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.e[0].name[67] = 1);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.e[0].attached = 1);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.e[2].name[67] = 'a');
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.e[2].attached = 1);
    REFUSED(ELF_BAD_MANIFEST, invalid, e.mft.e[1].attached = 2);

    ACCEPTED(set_devices(&e, 0));
    ACCEPTED(set_devices(&e, 63));
    ACCEPTED(memset(e.mft.e[1].name, 'a', 67));
    ACCEPTED(e.mft.e[1].name[0] = '\xff');
    ACCEPTED(e.mft.e[1].name[0] = '\0');
    ACCEPTED(memcpy(e.mft.e[2].name, e.mft.e[1].name, 68));
    ACCEPTED(e.mft.e[1].type = 0);
    ACCEPTED(e.mft.e[1].type = UINT32_MAX);

    static struct test_elf e;
    static struct elf_image image;
    struct elf_error error;
    make_good(&e);
    memset(&e.mft.e[1].u, 0xff, sizeof e.mft.e[1].u);
    e.mft.e[2].host_private = UINT64_MAX;
    memset(e.mft.e[2].padding, 0xff, sizeof e.mft.e[2].padding);
    HOLDS(parse_bytes(&e, sizeof e, &image, &error) == 0);
    HOLDS(image.mft_bytes == 8 + 104 * 3);
    HOLDS(image.manifest.entries == 3 && image.manifest.version == 1);
    HOLDS(strcmp(image.manifest.e[1].name, "service0") == 0 && image.manifest.e[1].type == MFT_NET_BASIC);
    HOLDS(strcmp(image.manifest.e[2].name, "service1") == 0 && image.manifest.e[2].type == MFT_BLOCK_BASIC);
    HOLDS(image.manifest.e[1].u.block.capacity == 0 && image.manifest.e[1].u.block.block_size == 0);
    HOLDS(image.manifest.e[1].u.net.mtu == 0);
    HOLDS(image.manifest.e[2].host_private == 0 && image.manifest.e[2].padding[6] == 0);
    HOLDS(image.manifest.e[3].type == 0);
}

static void check_extensions(const char *claim, const void *bytes, size_t size, uint32_t want)
{
    static struct elf_image image;
    struct elf_error error;
    int result = parse_bytes(bytes, size, &image, &error);

    check(result == 0 && image.extensions == want, claim, result == 0 ? "other extensions" : error.text);
}

#define EXTENSIONS(want, ...)                                                                                \
    do {                                                                                                     \
        static struct test_elf e;                                                                            \
        make_good(&e);                                                                                       \
        add_extension(&e);                                                                                   \
        __VA_ARGS__;                                                                                         \
        check_extensions("extensions " #want ": " #__VA_ARGS__, &e, sizeof e, want);                         \
    } while (0)

static void test_extension_note(void)
{
    static const char *const size = "invalid executable: phdr[6] note does not fall within valid size";

    EXTENSIONS(1, (void)0);
    EXTENSIONS(0, e.phdr[SPARE].p_type = PT_NULL);
    EXTENSIONS(0, e.extension.features = 0);
    EXTENSIONS(15, e.extension.features = UINT32_MAX);
    EXTENSIONS(3, e.extension.features = 11);  /* no offload without the net batch */
    EXTENSIONS(0, e.extension.features = ~1U); /* without the gate nothing can be called */
    EXTENSIONS(0, e.extension.version = 0);
    EXTENSIONS(0, e.extension.version = 2);
    EXTENSIONS(0, e.extension.version = UINT32_MAX);
    EXTENSIONS(1, e.extension.reserved0 = e.extension.reserved1 = UINT32_MAX);
    EXTENSIONS(1, e.extension_header.descsz = 8);
    EXTENSIONS(1, e.extension_header.descsz = 64, e.phdr[SPARE].p_filesz = 84);
    EXTENSIONS(1, e.phdr[SPARE].p_filesz = UINT64_MAX);

    /* Not our note, whatever it contains: accepted. */
    EXTENSIONS(0, e.extension_header.namesz = 6);
    EXTENSIONS(0, e.extension_header.namesz = 8);
    EXTENSIONS(0, e.extension_header.name[0] = 't');
    EXTENSIONS(0, e.extension_header.name[6] = 'x');
    EXTENSIONS(1, e.extension_header.name[7] = 'x'); /* padding of the name */
    EXTENSIONS(0, e.extension_header.type = HVT_NOTE_ABI_TYPE);
    for (uint32_t filesz = 0; filesz < 20; filesz++)
        EXTENSIONS(0, e.phdr[SPARE].p_filesz = filesz);
    EXTENSIONS(0, e.phdr[SPARE].p_offset = UINT64_MAX);
    EXTENSIONS(0, e.phdr[SPARE].p_offset = sizeof e - 19);
    EXTENSIONS(0, e.extension_header.namesz = 0, e.extension_header.descsz = UINT32_MAX);

    /* Our note, but invalid. */
    REFUSED(ELF_BAD_NOTE, size, add_extension(&e), e.extension_header.descsz = 0);
    REFUSED(ELF_BAD_NOTE, "phdr[6] note does not fall within valid size (7 < 8)", add_extension(&e),
            e.extension_header.descsz = 7);
    REFUSED(ELF_BAD_NOTE, size, add_extension(&e), e.extension_header.descsz = 65,
            e.phdr[SPARE].p_filesz = 85);
    REFUSED(ELF_BAD_NOTE, size, add_extension(&e), e.extension_header.descsz = UINT32_MAX,
            e.phdr[SPARE].p_filesz = UINT64_MAX);
    REFUSED(ELF_BAD_NOTE, size, add_extension(&e), e.phdr[SPARE].p_filesz = 20);
    REFUSED(ELF_BAD_NOTE, size, add_extension(&e), e.phdr[SPARE].p_filesz = 35);
    REFUSED(ELF_BAD_NOTE, "phdr[6] bytes read mismatches note size (15 != 16)", add_extension(&e),
            memcpy((uint8_t *)&e + sizeof e - 35, &e.extension_header, 35),
            e.phdr[SPARE].p_offset = sizeof e - 35);

    /* The check comes after ABI and manifest, and before the entry. */
    REFUSED(ELF_BAD_MANIFEST, "Solo5 manifest is invalid", add_extension(&e), e.extension_header.descsz = 0,
            e.mft.version = 0);
    REFUSED(ELF_BAD_NOTE, size, add_extension(&e), e.extension_header.descsz = 0, e.header.e_entry = 0);
}

/* A query about one note is answered even for files that cannot be loaded. */
static void test_queries(void)
{
    static struct test_elf e;
    static struct elf_image image;
    struct byte_source source = byte_source_memory(&e, sizeof e);
    struct elf_error error;

    make_good(&e);
    e.abi.target = 6;
    e.abi.version = 9;
    e.header.e_entry = 0;
    e.phdr[MFT].p_type = PT_NULL;
    HOLDS(elf_image_query_abi(&source, &image, &error) == 0);
    HOLDS(image.abi_target == 6 && image.abi_version == 9);
    HOLDS(elf_image_query_manifest(&source, &image, &error) == -1 && error.code == ELF_BAD_MANIFEST);
    HOLDS(strcmp(error.text, "No Solo5 manifest found in executable") == 0);

    make_good(&e);
    e.header.e_entry = 0;
    e.phdr[ABI].p_type = PT_NULL;
    HOLDS(elf_image_query_manifest(&source, &image, &error) == 0);
    HOLDS(image.manifest.entries == 3 && strcmp(image.manifest.e[1].name, "service0") == 0);
    HOLDS(elf_image_query_abi(&source, &image, &error) == -1 && error.code == ELF_BAD_ABI);
    HOLDS(strcmp(error.text, "No Solo5 ABI information found in executable") == 0);

    e.mft.version = 2;
    HOLDS(elf_image_query_manifest(&source, &image, &error) == -1 && error.code == ELF_BAD_MANIFEST);
    HOLDS(strcmp(error.text, "Manifest validation failed") == 0);

    e.header.e_type = ET_DYN;
    HOLDS(elf_image_query_abi(&source, &image, &error) == -1 && error.code == ELF_BAD_FILE);
    HOLDS(elf_image_query_manifest(&source, &image, &error) == -1 && error.code == ELF_BAD_FILE);
}

static void test_image(void)
{
    static struct test_elf e;
    static struct elf_image image;
    struct elf_error error;

    make_good(&e);
    HOLDS(parse_bytes(&e, sizeof e, &image, &error) == 0);
    HOLDS(image.entry == MIB + 0x20);
    HOLDS(image.kernel_end == MIB + 0x2000);
    HOLDS(image.bss_end == MIB + 0x3000);
    HOLDS(image.abi_target == 1 && image.abi_version == 2);
    HOLDS(image.segment_count == 2);
    HOLDS(image.segments[0].start == MIB && image.segments[0].end == MIB + 0x1000);
    HOLDS(image.segments[0].flags == SEGMENT_EXEC && image.segments[0].index == TEXT);
    HOLDS(image.segments[1].vaddr == MIB + 0x1000 && image.segments[1].end == MIB + 0x2000);
    HOLDS(image.segments[1].file_bytes == 0x120 && image.segments[1].mem_bytes == 0x120);
    HOLDS(image.segments[1].file_offset == offsetof(struct test_elf, data));
    HOLDS(image.segments[1].flags == (SEGMENT_READ | SEGMENT_WRITE));

    make_good(&e);
    e.phdr[TEXT].p_type = e.phdr[DATA].p_type = PT_NULL;
    HOLDS(parse_bytes(&e, sizeof e, &image, &error) == 0);
    HOLDS(image.segment_count == 0 && image.kernel_end == 0 && image.bss_end == MIB + 0x3000);
    HOLDS(start_state_template_bytes(&image) == HVT_GUEST_MIN_GPA);
}

/* `notes` follow `loads` one-page segments, in a table that is far longer than one read. */
static void test_long_tables(void)
{
    const uint32_t most = 0xffff;
    const size_t table = sizeof(struct test_elf);
    const size_t size = table + most * sizeof(Elf64_Phdr);
    struct test_elf *e = calloc(1, size);
    static struct elf_image image;
    struct elf_error error;

    if (e == NULL)
        abort();
    make_good(e);
    e->header.e_phoff = table;
    e->header.e_phnum = 0xffff;
    Elf64_Phdr *phdr = (Elf64_Phdr *)((uint8_t *)e + table);
    for (uint32_t i = 0; i < 128; i++)
        phdr[i * 500] = load(offsetof(struct test_elf, text), MIB + i * 0x1000, 0x1000, PF_R);
    phdr[most - 2] = e->phdr[ABI];
    phdr[most - 1] = e->phdr[MFT];
    HOLDS(parse_bytes(e, size, &image, &error) == 0);
    HOLDS(image.segment_count == 128 && image.segments[127].index == 127 * 500);
    HOLDS(image.kernel_end == MIB + 128 * 0x1000);

    check_refused("refused: one header fewer than announced", e, size - 1, ELF_BAD_FILE,
                  "program header does not match the expected size (3669959 != 3669960 while loading note)");
    phdr[most - 3] = load(offsetof(struct test_elf, text), MIB + 128 * 0x1000, 0x1000, PF_R);
    check_refused("refused: 129 segments", e, size, ELF_BAD_FILE,
                  "invalid executable: phdr[65532]: more than 128 loadable segments");
    phdr[most - 3].p_filesz = 0;
    check_accepted("accepted: 128 segments and a bss", e, size);
    free(e);
}

static void check_fits(const char *claim, const struct elf_image *image, uint64_t mem_bytes,
                       const char *words)
{
    struct elf_error error;
    int result = elf_image_fits(image, mem_bytes, &error);

    if (words == NULL)
        check(result == 0 && error.code == ELF_OK, claim, error.text);
    else
        check(result == -1 && error.code == ELF_TOO_LARGE && strstr(error.text, words) != NULL, claim,
              result == 0 ? "accepted" : error.text);
}

static void test_fits(void)
{
    static struct test_elf e;
    static struct elf_image image;
    struct elf_error error;

    make_good(&e);
    (void)parse_bytes(&e, sizeof e, &image, &error);
    check_fits("fits: bss ends exactly at M", &image, MIB + 0x3000, NULL);
    check_fits(
        "does not fit: bss ends past M", &image, MIB + 0x2fff,
        "program memory segment falls outside of valid range (1060864 (end of bss) > 1060863 (mem_size)); "
        "it needs at least 2 MiB of memory");
    check_fits("does not fit: data end past M", &image, MIB + 0x1fff,
               "phdr[3] program memory segment falls outside of valid range");
    check_fits("does not fit: bytes of the file past M", &image, MIB + 0x1000,
               "phdr[3] program file segment falls outside of valid range");
    check_fits("does not fit: entry at M", &image, MIB + 0x20, "e_entry does not fall within");
    check_fits("does not fit: no memory", &image, 0, "e_entry does not fall within");
    check_fits("fits: 4 GiB", &image, 4 * GIB, NULL);

    make_good(&e);
    e.header.e_entry = 2 * MIB;
    (void)parse_bytes(&e, sizeof e, &image, &error);
    check_fits("does not fit: entry alone, just at M", &image, 2 * MIB, "it needs at least 4 MiB");
    check_fits("fits: entry is the last byte", &image, 2 * MIB + 1, NULL);

    make_good(&e);
    e.phdr[BSS].p_memsz = 4 * GIB - e.phdr[BSS].p_vaddr;
    (void)parse_bytes(&e, sizeof e, &image, &error);
    check_fits("fits: bss fills 4 GiB", &image, 4 * GIB, NULL);
    check_fits("does not fit: 4 GiB less 2 MiB", &image, 4 * GIB - 2 * MIB, "it needs at least 4096 MiB");
}

static int64_t failing_read_at(const struct byte_source *self, uint64_t offset, void *to, size_t len)
{
    struct byte_source memory = byte_source_memory(self->bytes, self->size);

    if (offset >= (uint64_t)self->fd) /* `fd` is used here as the offset at which the disk fails */
        return -EIO;
    return memory.read_at(&memory, offset, to, len);
}

static unsigned table_reads_left;

static int64_t shrinking_read_at(const struct byte_source *self, uint64_t offset, void *to, size_t len)
{
    struct byte_source memory = byte_source_memory(self->bytes, self->size);

    if (offset >= sizeof(struct test_elf) && table_reads_left-- == 0)
        return 0; /* the file was truncated before its table */
    return memory.read_at(&memory, offset, to, len);
}

/*
 * A table of 100 headers needs two windows, and is read three times: to check that it is complete
 * (reads 0 and 1), for the notes (Solo5's are in the first window, read 2; our note does not exist,
 * read 3), and for the segments (reads 4 and 5).
 */
static void test_file_that_shrinks_while_it_is_read(void)
{
    static struct {
        struct test_elf e;
        Elf64_Phdr table[100];
    } file;
    static struct elf_image image;
    struct elf_error error;

    make_good(&file.e);
    memcpy(file.table, file.e.phdr, sizeof file.e.phdr);
    file.e.header.e_phoff = sizeof file.e;
    file.e.header.e_phnum = 100;
    for (unsigned i = 0; i < 7; i++) {
        struct byte_source source = byte_source_memory(&file, sizeof file);
        source.read_at = shrinking_read_at;
        table_reads_left = i;
        int result = elf_image_parse(&source, &image, &error);
        if (i < 6)
            check(result == -1 && strstr(error.text, "program header does not match") != NULL,
                  "refused: the table is gone", result == 0 ? "accepted" : error.text);
        else
            check(result == 0 && image.segment_count == 2, "accepted: nothing more had to be read",
                  error.text);
    }
}

static void test_failing_reads(void)
{
    static const struct {
        const char *claim;
        size_t broken;
    } cases[] = {
        {"elf header could not be read", 0},
        {"program header could not be read", offsetof(struct test_elf, phdr)},
        {"note header could not be read", offsetof(struct test_elf, abi_header)},
        {"note could not be read", offsetof(struct test_elf, abi)},
        {"note header could not be read", offsetof(struct test_elf, mft_header)},
        {"note could not be read", offsetof(struct test_elf, mft)},
        {"note header could not be read", offsetof(struct test_elf, extension_header)},
        {"note could not be read", offsetof(struct test_elf, extension)},
        {"segment could not be read", offsetof(struct test_elf, text)},
    };
    static struct test_elf e;
    static struct elf_image image;
    struct elf_error error;

    make_good(&e);
    add_extension(&e);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct byte_source source = byte_source_memory(&e, sizeof e);
        source.read_at = failing_read_at;
        source.fd = (int)cases[i].broken;
        int result = elf_image_parse(&source, &image, &error);
        check(result == -1 && error.os_error == EIO && strcmp(error.text, cases[i].claim) == 0,
              cases[i].claim, error.text);
    }

    int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct byte_source directory = byte_source_file(fd);
    HOLDS(elf_image_parse(&directory, &image, &error) == -1 && error.os_error == EISDIR);
    close(fd);
    struct byte_source closed = byte_source_file(-1);
    HOLDS(elf_image_parse(&closed, &image, &error) == -1 && error.os_error == EBADF);
}

static void test_file_source(void)
{
    static struct test_elf e;
    static struct elf_image image;
    struct elf_error error;
    uint8_t byte;
    int fd = memfd_create("elf", MFD_CLOEXEC);

    make_good(&e);
    HOLDS(write(fd, &e, sizeof e) == (ssize_t)sizeof e);
    struct byte_source source = byte_source_file(fd);
    HOLDS(elf_image_parse(&source, &image, &error) == 0 && image.segment_count == 2);
    HOLDS(source.read_at(&source, sizeof e, &byte, 1) == 0);
    HOLDS(source.read_at(&source, UINT64_MAX, &byte, 1) == 0);
    HOLDS(source.read_at(&source, INT64_MAX, &byte, 1) == 0);
    HOLDS(source.read_at(&source, INT64_MAX - 1ULL, &byte, 1) == 0);
    close(fd);
}

/* A windowed source answers like the file's source, for all requests and in any order. */
static void test_windowed_source(void)
{
    enum { FILE_BYTES = 3 * sizeof(((struct byte_window *)0)->bytes) + 100 };
    static uint8_t bytes[FILE_BYTES], want[FILE_BYTES], got[FILE_BYTES];
    static struct test_elf e;
    static struct elf_image image;
    static struct byte_window window;
    struct elf_error error;
    uint32_t seed = 1;
    bool same = true;
    int fd = memfd_create("bytes", MFD_CLOEXEC);

    for (size_t i = 0; i < FILE_BYTES; i++)
        bytes[i] = (uint8_t)(i * 7 + i / 256);
    HOLDS(write(fd, bytes, FILE_BYTES) == FILE_BYTES);
    struct byte_source file = byte_source_file(fd), windowed = byte_source_window(&window, fd);
    for (int i = 0; i < 20000; i++) {
        seed = seed * 1664525 + 1013904223;
        const uint64_t offset = (seed >> 8) % (FILE_BYTES + 50);
        const size_t len = (seed >> 3) % (i % 8 ? 120 : FILE_BYTES);
        memset(got, 0xee, FILE_BYTES);
        memset(want, 0xee, FILE_BYTES);
        same &= file.read_at(&file, offset, want, len) == windowed.read_at(&windowed, offset, got, len);
        same &= memcmp(want, got, FILE_BYTES) == 0;
    }
    check(same, "a windowed source answers as the file", "differs");
    HOLDS(windowed.read_at(&windowed, UINT64_MAX - 10, got, 20) == 0);
    HOLDS(windowed.read_at(&windowed, INT64_MAX - 10, got, 20) == 0);

    make_good(&e);
    HOLDS(ftruncate(fd, 0) == 0 && pwrite(fd, &e, sizeof e, 0) == (ssize_t)sizeof e);
    windowed = byte_source_window(&window, fd);
    HOLDS(elf_image_parse(&windowed, &image, &error) == 0 && image.segment_count == 2);
    close(fd);
    windowed = byte_source_window(&window, -1);
    HOLDS(elf_image_parse(&windowed, &image, &error) == -1 && error.os_error == EBADF);
}

static void test_load(void)
{
    static struct test_elf e;
    static struct elf_image image;
    struct elf_error error;
    int fd = memfd_create("template", MFD_CLOEXEC);

    make_good(&e);
    e.phdr[DATA].p_vaddr += 0x10;
    e.phdr[DATA].p_filesz = 0x1100; /* into a second page */
    e.phdr[DATA].p_memsz = 0x3000;
    e.phdr[BSS].p_vaddr = 2 * MIB;
    struct byte_source source = byte_source_memory(&e, sizeof e);
    HOLDS(elf_image_parse(&source, &image, &error) == 0);
    const uint64_t bytes = start_state_template_bytes(&image);
    HOLDS(bytes == MIB + 0x5000);

    HOLDS(ftruncate(fd, (off_t)bytes - 1) == 0);
    HOLDS(start_state_load_segments(&image, &source, fd, &error) == -1 && error.os_error == 0);
    HOLDS(strstr(error.text, "template of 1069055 bytes is smaller than the 1069056") != NULL);
    HOLDS(start_state_load_segments(&image, &source, -1, &error) == -1 && error.os_error == EBADF);

    HOLDS(ftruncate(fd, (off_t)bytes) == 0);
    char path[32];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int readonly = open(path, O_RDONLY | O_CLOEXEC);
    HOLDS(start_state_load_segments(&image, &source, readonly, &error) == -1 && error.os_error == EACCES);
    HOLDS(strcmp(error.text, "phdr[2] template could not be mapped") == 0);
    close(readonly);
    HOLDS(start_state_load_segments(&image, &source, fd, &error) == 0 && error.code == ELF_OK);
    uint8_t *memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    HOLDS(memory != MAP_FAILED);
    bool low_is_zero = true, text_is_there = true, data_is_there = true, rest_is_zero = true;
    for (uint64_t i = 0; i < MIB; i++)
        low_is_zero &= memory[i] == 0;
    for (uint64_t i = MIB; i < MIB + 0x1000; i++)
        text_is_there &= memory[i] == 0xf4;
    for (uint64_t i = MIB + 0x1010; i < MIB + 0x2110; i++)
        data_is_there &= memory[i] == 0xda;
    for (uint64_t i = MIB + 0x1000; i < MIB + 0x1010; i++)
        rest_is_zero &= memory[i] == 0;
    for (uint64_t i = MIB + 0x2110; i < bytes; i++)
        rest_is_zero &= memory[i] == 0;
    HOLDS(low_is_zero);
    HOLDS(text_is_there);
    HOLDS(data_is_there);
    HOLDS(rest_is_zero);
    munmap(memory, bytes);

    struct byte_source shorter = byte_source_memory(&e, offsetof(struct test_elf, data) + 5);
    HOLDS(start_state_load_segments(&image, &shorter, fd, &error) == -1 && error.code == ELF_BAD_FILE);
    HOLDS(strcmp(error.text, "phdr[3] host file segment mismatched (5 != 4352 (p_filesz))") == 0);
    struct byte_source broken = source;
    broken.read_at = failing_read_at;
    broken.fd = 0;
    HOLDS(start_state_load_segments(&image, &broken, fd, &error) == -1 && error.os_error == EIO);
    close(fd);
}

static uint64_t u64_at(const uint8_t *bytes, uint64_t offset)
{
    uint64_t value;
    memcpy(&value, bytes + offset, sizeof value);
    return value;
}

/* Every entry of every table, as written-out numbers: an error in tender_abi.h is found here, too. */
static void check_tables(uint64_t mapped)
{
    uint8_t *low = calloc(1, MIB);
    bool gdt = true, pml4 = true, pdpt = true, pd = true, pt = true, rest = true;
    char claim[64];

    if (low == NULL)
        abort();
    start_state_write_tables(low, mapped, 0);
    gdt &= u64_at(low, 0x1000) == 0 && u64_at(low, 0x1008) == 0x00af99000000ffff;
    gdt &= u64_at(low, 0x1010) == 0x00cf93000000ffff;
    for (uint64_t i = 0; i < 512; i++) {
        pml4 &= u64_at(low, 0x2000 + 8 * i) == (i == 0 ? 0x3003 : 0);
        pdpt &= u64_at(low, 0x3000 + 8 * i) == (i < 4 ? 0x4003 + 0x1000 * i : 0);
        uint64_t page = i * 4096;
        uint64_t want = page < 0x10000 ? 0 : page < 0x100000 ? page | 1 : page | 3;
        pt &= u64_at(low, 0x8000 + 8 * i) == want;
    }
    for (uint64_t i = 0; i < 2048; i++) {
        uint64_t large = i * 2 * MIB;
        uint64_t want = i == 0 ? 0x8003 : large < mapped ? large | 0x83 : 0;
        pd &= u64_at(low, 0x4000 + 8 * i) == want;
    }
    for (uint64_t i = 0; i < MIB; i++)
        if (i < 0x1000 || (i >= 0x1018 && i < 0x2000) || i >= 0x9000)
            rest &= low[i] == 0;

    (void)snprintf(claim, sizeof claim, "GDT for %llu MiB", (unsigned long long)(mapped / MIB));
    check(gdt, claim, "differs");
    memcpy(claim, "PML", 3);
    check(pml4, claim, "differs");
    memcpy(claim, "PDP", 3);
    check(pdpt, claim, "differs");
    memcpy(claim, "PDs", 3);
    check(pd, claim, "differs");
    memcpy(claim, "PT ", 3);
    check(pt, claim, "differs");
    check(rest, "nothing else is written", "something is");
    free(low);
}

/* The block and the page as written-out bytes, as the assembler translates the instructions. */
static void check_gate(uint8_t extensions)
{
    const uint8_t block[24] = {'T', 'N', 'D', 'X', 1, 0,    0,    0,    extensions, 0, 0, 0,
                               0,   0,   0,   0,   0, 0xf0, 0x0f, 0x00, 0,          0, 0, 0};
    uint8_t *low = calloc(1, MIB);
    uint8_t *without = calloc(1, MIB);
    bool slots = true, padding = true, rest = true;

    if (low == NULL || without == NULL)
        abort();
    start_state_write_tables(low, 2 * MIB, extensions);
    start_state_write_tables(without, 2 * MIB, 0);
    HOLDS(memcmp(low, without, 0xff000) == 0);
    HOLDS(memcmp(low + 0xffe00, block, sizeof block) == 0);
    for (size_t i = 0xffe00 + sizeof block; i < MIB; i++)
        rest &= low[i] == 0; /* the backend's part too */
    for (uint8_t slot = 0; slot < 0xe0; slot++) {
        const uint8_t *at = low + 0xff000 + 16 * (size_t)slot;
        const uint8_t code[9] = {0x89, 0xf8, 0xba, slot, 0x05, 0x00, 0x00, 0xef, 0xc3};
        bool is_slot =
            (slot >= 1 && slot <= 8) || (slot == 0x10 && extensions & 2) || (slot == 0x11 && extensions & 4);
        slots &= !is_slot || memcmp(at, code, sizeof code) == 0;
        for (size_t i = is_slot ? sizeof code : 0; i < 16; i++)
            padding &= at[i] == 0xcc;
    }
    HOLDS(slots);
    HOLDS(padding);
    HOLDS(rest);
    free(low);
    free(without);
}

static void test_gate(void)
{
    check_gate(TENDER_FEATURE_GATE);
    check_gate(TENDER_FEATURE_GATE | TENDER_FEATURE_BLOCK_BATCH);
    check_gate(TENDER_FEATURE_GATE | TENDER_FEATURE_NET_BATCH);
}

static void test_boot_info(void)
{
    static struct test_elf e;
    static struct elf_image image;
    static struct mft manifest;
    struct elf_error error;
    uint8_t *low = calloc(1, MIB);
    const uint64_t mft = 0x10038, cmdline = mft + 8 + 3 * 104;

    if (low == NULL)
        abort();
    make_good(&e);
    (void)parse_bytes(&e, sizeof e, &image, &error);
    manifest = image.manifest;
    manifest.e[1].attached = 1;
    manifest.e[1].u.net.mtu = 1500;
    memcpy(manifest.e[1].u.net.mac, "\x02\x11\x22\x33\x44\x55", 6);
    manifest.e[1].host_private = 7;
    manifest.e[2].attached = 1;
    manifest.e[2].u.block.capacity = 0x123456789000;
    manifest.e[2].u.block.block_size = 512;
    manifest.e[2].padding[0] = 0xff;
    memset(low + cmdline, 0xcc, HVT_CMDLINE_BYTES + 1);
    start_state_write_boot_info(low + HVT_BOOT_INFO_GPA, &image, &manifest, 512 * MIB, 2700000000, 0,
                                "hello world", 11);

    HOLDS(u64_at(low, 0x10000) == 512 * MIB);
    HOLDS(u64_at(low, 0x10008) == MIB + 0x2000);
    HOLDS(u64_at(low, 0x10010) == 2700000000);
    HOLDS(u64_at(low, 0x10018) == cmdline);
    HOLDS(u64_at(low, 0x10020) == mft);
    HOLDS(u64_at(low, 0x10028) == 0); /* host_features, guest_features */
    HOLDS(u64_at(low, 0x10030) == 0); /* net_ring */
    HOLDS(u64_at(low, mft) == (1 | 3ULL << 32));
    HOLDS(u64_at(low, mft + 8 + 64) == (uint64_t)MFT_RESERVED_FIRST << 32);
    HOLDS(strcmp((char *)low + mft + 8 + 104, "service0") == 0);
    HOLDS(memcmp(low + mft + 8 + 104 + 72, "\x02\x11\x22\x33\x44\x55\xdc\x05", 8) == 0);
    HOLDS(u64_at(low, mft + 8 + 104 + 88) == 0); /* no host descriptors */
    HOLDS(u64_at(low, mft + 8 + 104 + 96) == 1);
    HOLDS(u64_at(low, mft + 8 + 208 + 72) == 0x123456789000);
    HOLDS(u64_at(low, mft + 8 + 208 + 80) == 512);
    HOLDS(u64_at(low, mft + 8 + 208 + 96) == 1);
    HOLDS(strcmp((char *)low + cmdline, "hello world") == 0);
    /* The rest of a longer earlier line is cleared, and nothing after its buffer is written. */
    HOLDS(low[cmdline + 12] == 0 && low[cmdline + HVT_CMDLINE_BYTES - 1] == 0);
    HOLDS(low[cmdline + HVT_CMDLINE_BYTES] == 0xcc);
    HOLDS(manifest.e[1].host_private == 7); /* the caller's manifest is unchanged */

    /* The largest of everything still ends below the lowest load address. */
    make_good(&e);
    set_devices(&e, 63);
    (void)parse_bytes(&e, sizeof e, &image, &error);
    char line[HVT_CMDLINE_BYTES];
    memset(line, 'x', sizeof line);
    memset(low, 0, MIB);
    start_state_write_boot_info(low + HVT_BOOT_INFO_GPA, &image, &image.manifest, 2 * MIB, 1, 0, line,
                                sizeof line - 1);
    const uint64_t end = 0x10000 + 56 + 6664 + 8192;
    HOLDS(u64_at(low, 0x10018) == end - 8192);
    HOLDS(low[end - 2] == 'x' && low[end - 1] == 0 && u64_at(low, end) == 0);
    start_state_write_boot_info(low + HVT_BOOT_INFO_GPA, &image, &image.manifest, 2 * MIB, 1, 0, "", 0);
    uint64_t left = 0; /* bytes of the longer line that was there before */
    for (uint64_t at = end - 8192; at < end; at++)
        left += low[at] != 0;
    HOLDS(left == 0);
    free(low);
}

int main(void)
{
    test_header();
    test_entry();
    test_segments();
    test_bss();
    test_abi_note();
    test_manifest_note();
    test_extension_note();
    test_queries();
    test_image();
    test_long_tables();
    test_fits();
    test_failing_reads();
    test_file_that_shrinks_while_it_is_read();
    test_file_source();
    test_windowed_source();
    test_load();
    check_tables(2 * MIB);
    check_tables(4 * MIB);
    check_tables(512 * MIB);
    check_tables(GIB);
    check_tables(4 * GIB - 2 * MIB);
    check_tables(4 * GIB);
    test_gate();
    test_boot_info();
    printf("1..%u\n", checks);
    if (failures > 0)
        printf("# %u of %u failed\n", failures, checks);
    return failures == 0 ? 0 : 1;
}
