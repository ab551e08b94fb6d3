/*
 * The debug note: where a debugger finds a guest's state in a process of Tender.
 *
 * Each fact is an ELF note of its own in the program's or the library's file: owner "TENDER", and a type
 * below. Its content is a number of 64 bits and then the fact's name, NUL-terminated. The notes lie in a
 * loaded segment, so they are read from the file or from the memory of a process, and `strip` keeps them. No
 * code reads them, and they need no relocation: a run does not touch their page.
 *
 * Assembly has debug_note.inc for them. tender/debug/note.py reads them. A change of what a fact means is a
 * new DEBUG_NOTE_VERSION.
 */
#ifndef TENDER_DEBUG_NOTE_H
#define TENDER_DEBUG_NOTE_H

#define DEBUG_NOTE_VERSION 1
#define DEBUG_NOTE_NUMBER  1 /* the number itself */
#define DEBUG_NOTE_ADDRESS 2 /* an address, relative to the place of this number in memory */

#define DEBUG_NOTE_(type, value, name)                                                                       \
    ".pushsection .note.tender, \"a\", @note\n\t"                                                            \
    ".balign 4\n\t"                                                                                          \
    ".long 7, 9991f - 9990f, " type "\n\t"                                                                   \
    ".asciz \"TENDER\"\n\t"                                                                                  \
    ".balign 4\n"                                                                                            \
    "9990: .quad " value "\n\t"                                                                              \
    ".asciz \"" name "\"\n"                                                                                  \
    "9991: .balign 4\n\t"                                                                                    \
    ".popsection"

/* For the body of a DEBUG_NOTE(): a constant that the compiler knows. */
#define DEBUG_NUMBER(name, number) __asm__ volatile(DEBUG_NOTE_("1", "%c0", name) : : "i"((long)(number)))
#define DEBUG_OFFSET(name, type, member) DEBUG_NUMBER(name, offsetof(type, member))

/* At the top level of a file: the address of a symbol that is hidden, and DEBUG_SYMBOL. */
#define DEBUG_ADDRESS(name, symbol) __asm__(DEBUG_NOTE_("2", #symbol " - .", name))
#define DEBUG_SYMBOL                __attribute__((used, visibility("hidden"))) /* also without a user in C */

/*
 * For a large variable that most runs do not touch. The linker puts it behind all other variables, so that
 * these lie close together: a run touches fewer pages.
 */
#define LAST_IN_BSS __attribute__((common, visibility("hidden")))

/* The function is never called: it is where numbers of the compiler become assembly. */
#define DEBUG_NOTE(function) static __attribute__((used, cold)) void function(void)

#endif
